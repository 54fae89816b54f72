"""Upload of offline runs: which ones, and what is said without a login."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.records.folders import EPISODES_FILE
from eval.wandb_sync import find_offline, main


def offline_run(
    folder: Path, run_id: str | None = None, *, uploaded: bool = False, time: str = "20261123_100000"
) -> Path:
    run_id = run_id or f"{zlib.crc32(str(folder).encode()):08x}"
    run = folder / "wandb" / f"offline-run-{time}-{run_id}"
    run.mkdir(parents=True)
    (run / "run-abc.wandb").touch()
    if uploaded:
        (run / "run-abc.wandb.synced").touch()
    return run


def test_runs_are_found_at_any_depth_and_those_uploaded_before_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = offline_run(tmp_path / "2026-11-22" / "10-00_a")
    third = offline_run(tmp_path / "sweeps" / "s" / "2_c")
    second = offline_run(tmp_path / "sweeps" / "s" / "1_b", uploaded=True)
    (tmp_path / "untracked").mkdir()
    (tmp_path / "untracked" / EPISODES_FILE).touch()
    assert find_offline([tmp_path, first.parents[1]]) == [first, second, third]
    assert f"{tmp_path} has 4 runs, 3 of them tracked offline" in capsys.readouterr().err
    assert main([str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"would upload {first}",
        f"would upload {third}",
        "would upload 2; 1 of 3 offline runs had been uploaded before",
    ]


@pytest.mark.parametrize("uploaded", [False, True])
def test_two_runs_of_one_id_are_refused_before_one_replaces_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uploaded: bool
) -> None:
    first = offline_run(tmp_path / "0_a", "fixed", uploaded=uploaded)
    second = offline_run(tmp_path / "1_b", "fixed")
    assert main([str(tmp_path)], upload=lambda run: pytest.fail("uploaded")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {first} and {second} have one W&B id, fixed: ")
    assert main([str(tmp_path / "1_b"), "--dry-run"]) == 0


def test_the_processes_of_a_resumed_run_are_uploaded_together_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.wandb_sync.require_login", lambda: None)
    second = offline_run(tmp_path / "run", "fixed", time="20261124_090000")
    first = offline_run(tmp_path / "run", "fixed")
    other = offline_run(tmp_path / "other")
    uploads: list[list[Path]] = []
    assert main([str(tmp_path)], upload=lambda paths: uploads.append([*paths]) or 0) == 0
    assert uploads == [[other], [first, second]]


@pytest.mark.parametrize(
    "name", ["wandb", "wandb/RUN", "wandb/RUN/files/x", "wandb/RUN/files/logs/x", "wandb/RUN/run-abc.wandb"]
)
@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["upload", "dry run"])
def test_what_a_link_leads_to_is_not_uploaded(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline_run(tmp_path / "run")
    link = tmp_path / "run" / name.replace("RUN", run.name)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    assert main([str(tmp_path / "run"), *arguments], upload=lambda run: pytest.fail("uploaded")) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {link} must be a plain file, got a link; ")


def test_links_that_wandb_makes_itself_are_no_reason_to_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline_run(tmp_path / "run")
    (run.parent / "latest-run").symlink_to(run.name)
    (run.parent / "debug.log").symlink_to(f"{run.name}/logs/debug.log")
    (run / "logs").mkdir()
    (run / "logs" / "debug-core.log").symlink_to(tmp_path / "of_the_home")
    assert main([str(tmp_path / "run"), "--dry-run"]) == 0
    assert f"would upload {run}" in capsys.readouterr().err


def test_why_there_is_nothing_to_upload_is_said_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked_elsewhere = tmp_path / "runs" / "a"
    tracked_elsewhere.mkdir(parents=True)
    (tracked_elsewhere / EPISODES_FILE).touch()
    (tmp_path / "empty").mkdir()
    reasons = {
        "nowhere": "does not exist",
        "empty": "holds no run, nor does any folder below it",
        "runs": "holds no offline W&B run (wandb/offline-run-*), "
        "but 1 run that tracked online or with tracking=none",
    }
    for name, reason in reasons.items():
        assert main([str(tmp_path / name)]) == 1
        assert capsys.readouterr().err.splitlines() == [f"error: {tmp_path / name} {reason}"]


@pytest.mark.usefixtures("home")
def test_without_a_login_nothing_is_uploaded_and_the_way_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offline_run(tmp_path / "run")
    assert main([str(tmp_path / "run")], upload=lambda run: pytest.fail("uploaded")) == 1
    assert "set WANDB_API_KEY or run `wandb login`" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_a_mode_that_is_set_is_named_when_there_is_no_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    offline_run(tmp_path / "run")
    assert main([str(tmp_path / "run")], upload=lambda run: pytest.fail("uploaded")) == 1
    assert "uploading needs a W&B login, and there is none (WANDB_MODE=offline is set): " in (
        capsys.readouterr().err
    )


def test_a_dry_run_needs_no_login(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = offline_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--dry-run"], upload=lambda run: pytest.fail("uploaded")) == 0
    assert f"would upload {run}" in capsys.readouterr().err


def test_a_run_that_cannot_be_uploaded_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = offline_run(tmp_path / "0_a"), offline_run(tmp_path / "1_b")
    monkeypatch.setattr("eval.wandb_sync.require_login", lambda: None)
    seen: list[Path] = []

    def upload(paths: Sequence[Path]) -> int:
        seen.extend(paths)
        return 1 if first in paths else 0

    assert main([str(tmp_path)], upload=upload) == 1
    assert seen == [first, second]
    assert f"error: {first} was not uploaded" in capsys.readouterr().err
    assert main([str(tmp_path)], upload=lambda run: 0) == 0
