"""Compiled code is found by all that it depends on, and never used where a file is not as it was written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

from optim.core import code_cache
from optim.core.code_cache import MANIFEST, VARIABLES, compiled_code
from policies.files import hold_lock

CPU = torch.device("cpu")
SIZES = {"width": 64}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "FOLDER", tmp_path)
    monkeypatch.setattr(code_cache, "_sources_sha256", lambda: "sources")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def build(name: str = "kernel.py", sizes: dict[str, int] = SIZES) -> str:
    """Compile something, as it seems; return where the code came from."""
    with compiled_code(CPU, sizes) as state:
        place = Path(cache_dir()) / "ab"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("code")
    return state


def folder(tmp_path: Path) -> Path:
    [one] = tmp_path.iterdir()
    return one


def test_the_second_process_finds_what_the_first_one_made(tmp_path: Path) -> None:
    assert [build(), build(), build("another_length.py"), build()] == ["cold", "warm", "warm", "warm"]
    listed = json.loads((folder(tmp_path) / MANIFEST).read_text())
    assert sorted(listed) == ["inductor/ab/another_length.py", "inductor/ab/kernel.py"]


def test_torch_and_triton_look_there_while_engines_are_built_and_nowhere_else_after(tmp_path: Path) -> None:
    with compiled_code(CPU, SIZES):
        assert cache_dir() == str(folder(tmp_path) / "inductor")
        assert triton_cache_dir(0) == str(folder(tmp_path) / "triton")
    assert not set(VARIABLES) & os.environ.keys()


def test_other_sizes_sources_and_versions_have_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [build(), build(sizes={"width": 128})] == ["cold", "cold"]
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert build() == "cold"
    monkeypatch.setattr(code_cache, "_sources_sha256", lambda: "others")
    assert build() == "cold"
    monkeypatch.setattr(code_cache, "_cpu", lambda: "another processor")
    assert build() == "cold"
    assert len(list(tmp_path.iterdir())) == 5


def damage(place: Path) -> None:
    (place / "inductor/ab/kernel.py").write_text("c0de")


def remove(place: Path) -> None:
    (place / "inductor/ab/kernel.py").unlink()


def leave_behind(place: Path) -> None:
    (place / "inductor/ab/half.py").write_text("co")


def break_manifest(place: Path) -> None:
    (place / MANIFEST).write_text("{")


def remove_manifest(place: Path) -> None:
    (place / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage, "kernel.py is damaged: its SHA-256 is not "),
        (remove, "kernel.py is missing"),
        (leave_behind, "half.py is not in manifest.json, as where a process was killed"),
        (break_manifest, "manifest.json"),
        (remove_manifest, " was not finished"),
    ],
)
def test_what_is_not_as_it_was_written_is_made_anew_and_named(
    harm: Callable[[Path], None], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build("other.py")
    build()
    harm(folder(tmp_path))
    assert build() == "cold"
    [warning] = caplog.messages
    assert warning.startswith(f"compiled code is made anew: {folder(tmp_path)}")
    assert words in warning
    assert build() == "warm"
    assert not (folder(tmp_path) / "inductor/ab/other.py").exists()


def test_a_build_that_raises_keeps_what_it_had_compiled(tmp_path: Path) -> None:
    def fail() -> None:
        with compiled_code(CPU, SIZES):
            Path(cache_dir(), "kernel.py").write_text("code")
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        fail()
    assert not set(VARIABLES) & os.environ.keys()
    assert build() == "warm"


def test_a_folder_that_the_user_named_is_left_to_him(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    with compiled_code(CPU, SIZES) as state:
        assert cache_dir() == str(tmp_path / "mine")
    assert state == f"TORCHINDUCTOR_CACHE_DIR={tmp_path}/mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_process_waits_for_another_one_with_the_same_key_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build()
    states: list[str] = []
    second = Thread(target=lambda: states.append(build()))
    with hold_lock(folder(tmp_path)):
        second.start()
        for _ in range(1000):
            if caplog.messages:
                break
            second.join(0.01)
        assert not states
    second.join()
    assert states == ["warm"]
    assert caplog.messages == [f"waiting for another process, which compiles to {folder(tmp_path)}"]


def test_a_folder_that_cannot_be_locked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="cannot be locked, so two processes could write it at once"):
        build()
