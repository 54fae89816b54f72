"""Upload of offline runs: which ones, and what is said without a login."""

from pathlib import Path

import pytest

from eval.wandb_sync import find_offline, main


def offline_run(
    folder: Path, name: str = "offline-run-20261123_100000-abc", *, uploaded: bool = False
) -> Path:
    run = folder / "wandb" / name
    run.mkdir(parents=True)
    (run / "run-abc.wandb").touch()
    if uploaded:
        (run / "run-abc.wandb.synced").touch()
    return run


def test_the_runs_of_a_sweep_are_found_and_those_uploaded_before_are_not(tmp_path: Path) -> None:
    first, third = offline_run(tmp_path / "0_a"), offline_run(tmp_path / "2_c")
    offline_run(tmp_path / "1_b", uploaded=True)
    assert find_offline([tmp_path, tmp_path / "0_a"]) == [first, third]


def test_a_folder_without_offline_runs_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "holds no offline W&B run" in line


@pytest.mark.usefixtures("home")
def test_without_a_login_nothing_is_uploaded_and_the_way_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offline_run(tmp_path / "run")
    assert main([str(tmp_path / "run")], upload=lambda run: pytest.fail("uploaded")) == 1
    assert "set WANDB_API_KEY or run `wandb login`" in capsys.readouterr().err


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

    def upload(run: Path) -> int:
        seen.append(run)
        return 1 if run == first else 0

    assert main([str(tmp_path)], upload=upload) == 1
    assert seen == [first, second]
    assert f"error: {first} was not uploaded" in capsys.readouterr().err
    assert main([str(tmp_path)], upload=lambda run: 0) == 0
