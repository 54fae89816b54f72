"""What is evaluated is the installed benchmark, and its files are hashed."""

import errno
import os
import time
from pathlib import Path

import pytest

from eval.records.resume import Changed, refuse_changed
from eval.sim.benchmark import CACHE_FILE, HASHES, assets_hash, identity, libero_paths
from eval.sim.stack import SimulatorError
from eval.sim.tasks import load_tasks


@pytest.fixture
def path_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    libero_paths()  # LIBERO keeps the path that it was imported with, also for the tests that follow
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("part", ["bddl_files", "init_states", "assets"])
def test_another_liberos_path_file_is_refused(path_file: Path, part: str) -> None:
    path_file.write_text(f"{part}: /data/libero\n")
    said = rf"^{path_file} sends LIBERO to other .* \({part}: /data/libero\).*; unset LIBERO_CONFIG_PATH$"
    with pytest.raises(SimulatorError, match=said):
        load_tasks("libero_spatial")


def test_a_path_file_of_the_users_own_is_named_as_what_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    monkeypatch.setattr("libero.libero.libero_config_path", str(tmp_path))
    (tmp_path / "config.yaml").write_text("assets: /data/libero\n")
    with pytest.raises(SimulatorError, match=f"; remove {tmp_path}/config.yaml$"):
        libero_paths()


def test_a_path_file_that_leads_into_the_package_or_to_other_datasets_is_fine(path_file: Path) -> None:
    path_file.write_text(f"bddl_files: {libero_paths()['bddl_files']}\ndatasets: /data\n")
    assert len(load_tasks("libero_spatial")) == 10


@pytest.mark.parametrize("content", ["bddl_files: [1", "- a list\n", "assets: 7\n"])
def test_a_path_file_that_cannot_be_read_is_one_line(path_file: Path, content: str) -> None:
    path_file.write_text(content)
    with pytest.raises(SimulatorError, match=rf"^{path_file}, LIBERO's path file, cannot be read: "):
        libero_paths()


def test_a_home_that_this_user_may_not_read_is_named_as_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(part: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "config.yaml"))

    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    monkeypatch.setattr("libero.libero.libero_config_path", str(tmp_path))
    monkeypatch.setattr("libero.libero.get_libero_path", refuse)
    with pytest.raises(SimulatorError, match=r"cannot be read: .*; set HOME to a folder of this user's$"):
        libero_paths()


def test_the_hash_follows_names_and_contents_and_costs_nothing_twice(tmp_path: Path) -> None:
    assets, cache = tmp_path / "assets", tmp_path / "cache"
    (assets / "below").mkdir(parents=True)
    mesh = assets / "below" / "bowl.stl"
    mesh.write_bytes(b"bowl")
    first = assets_hash(assets, cache)
    assert assets_hash(assets, cache) == first == assets_hash(assets, None)
    assert (cache / CACHE_FILE).read_text().count(first) == 1
    mesh.write_bytes(b"mug")
    other = assets_hash(assets, cache)
    assert other != first
    mesh.rename(assets / "bowl.stl")
    assert assets_hash(assets, cache) not in (first, other)


def test_a_damaged_or_forbidden_cache_is_worked_around(tmp_path: Path) -> None:
    assets, cache = tmp_path / "assets", tmp_path / "cache"
    assets.mkdir()
    first = assets_hash(assets, cache)
    for damaged in ("[]", "{", '{"x": 1}'):
        (cache / CACHE_FILE).write_text(damaged)
        assert assets_hash(assets, cache) == first
    (tmp_path / "file").write_text("")
    assert assets_hash(assets, tmp_path / "file") == first


def test_suites_differ_in_tasks_and_states_and_share_their_assets() -> None:
    spatial, ten = identity("libero_spatial"), identity("libero_10")
    start_s = time.process_time()
    assert identity("libero_spatial") == spatial
    assert time.process_time() - start_s < 0.3
    assert [spatial[name] == ten[name] for name in HASHES] == [False, False, True]


def test_a_run_of_another_benchmark_is_not_resumed_and_one_of_old_is() -> None:
    now = {"simulator": dict.fromkeys(HASHES, "a" * 64)}
    with pytest.raises(Changed, match="simulator init_states_sha256 was 'b"):
        refuse_changed("run", {"simulator": now["simulator"] | {"init_states_sha256": "b" * 64}}, now)
    refuse_changed("run", {"simulator": {}}, now)
