"""A folder of lerobot against what lerobot itself made of the same inputs."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.pi05.parity import compare, main
from tests.policies.pi05.conftest import LEROBOT_SMALL


def test_tokens_images_and_actions_are_lerobots_in_both_forms() -> None:
    results = compare(LEROBOT_SMALL)
    bounds = {"out.tokens": 0.0, "out.images": 0.2, "out.normalised_actions": 1e-4, "out.actions": 1e-4}
    assert {(r.form, r.output) for r in results} == {(f, name) for f in ("lean", "full") for name in bounds}
    assert {(r.form, r.output): r.max_abs for r in results if r.max_abs > bounds[r.output]} == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of lerobot's folder, to be spoilt."""
    return Path(shutil.copytree(LEROBOT_SMALL, tmp_path / "spoilt"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["parity", *map(str, arguments)])
    return main()


@pytest.mark.parametrize(
    ("output", "change", "status"),
    [
        ("out.tokens", 1, 1),
        ("out.images", 0.25, 1),
        ("out.normalised_actions", 2e-4, 1),
        ("out.actions", 2e-4, 1),
        ("out.actions", 0.0, 0),
    ],
)
def test_command_exits_1_above_the_bound_of_an_output(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    change: float,
    status: int,
) -> None:
    recorded = load_file(folder / "io.safetensors")
    recorded[output] = (recorded[output] + change).to(recorded[output].dtype)
    save_file(recorded, folder / "io.safetensors")
    assert run(monkeypatch, folder) == status
    failed = {line.split()[1] for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")}
    assert failed == ({output} if status else set())


def test_folder_without_the_recording_is_taken_for_openpis_form(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "io.safetensors").unlink()
    assert run(monkeypatch, folder) == 2
    assert "config.json has no 'vocab_size'" in capsys.readouterr().err


def test_recording_that_does_not_fit_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = load_file(folder / "io.safetensors")
    save_file({**recorded, "in.noise": torch.zeros(2, 10, 32)}, folder / "io.safetensors")
    assert run(monkeypatch, folder) == 2
    assert "in.noise must be float32 [2, 50, 32], got float32 [2, 10, 32] in " in capsys.readouterr().err
    del recorded["in.state"], recorded["out.tokens"]
    save_file(recorded, folder / "io.safetensors")
    assert run(monkeypatch, folder) == 2
    assert "io.safetensors lacks in.state, out.tokens; record them too" in capsys.readouterr().err


def test_prompts_that_are_not_one_an_observation_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, message in (
        ("nonsense", "prompts.json is not JSON: "),
        ('["one"]', 'prompts.json must list 2 instructions, got ["one"]'),
        ("[1, 2]", "prompts.json must list 2 instructions, got [1, 2]"),
    ):
        (folder / "prompts.json").write_text(content)
        assert run(monkeypatch, folder) == 2
        assert message in capsys.readouterr().err


def test_relative_bound_is_refused_for_lerobots_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, LEROBOT_SMALL, "--rtol", "1e-5") == 2
    assert "--rtol=1e-05 is for openpi's form" in capsys.readouterr().err


def test_what_a_terminal_obeys_is_escaped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = load_file(folder / "io.safetensors")
    save_file({**recorded, "in.\x1b[2J": torch.zeros(1)}, folder / "io.safetensors")
    run(monkeypatch, folder)
    printed = capsys.readouterr()
    (folder / "io.safetensors").unlink()
    assert run(monkeypatch, folder.rename(folder.with_name("a\x1b[2Jb"))) == 2
    error = capsys.readouterr().err
    assert "a\\x1b[2Jb" in error
    assert "\x1b" not in printed.out + printed.err + error
