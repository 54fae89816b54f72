"""A run that was kept without its inferences is read, says why, and cannot be continued or joined."""

import json
from pathlib import Path

import pytest

from eval import compare, merge, summary
from eval.records.episodes import Episodes
from eval.records.reader import read_run
from eval.records.resume import nothing_left, recorded
from eval.records.writer import RunWriter
from eval.report.cli import main as report
from tests.eval.written_runs import write_run

PLAN = Episodes("libero_spatial", tuple(range(10)), 0, 20, 7).to_dict()
REASON = "other runs were beside it"
SAID = f"inferences were left out: {REASON}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run", run={"episodes": [PLAN], "inferences_left_out": REASON})
    (run / "inferences.jsonl").unlink()
    return run


def test_its_episodes_count_and_the_reason_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_run(folder)
    assert len(run.episodes) == 200
    assert not run.inferences
    assert run.warnings == (SAID,)
    assert summary.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"warning: {SAID}" in shown
    assert "Latency: n = 0 inferences" in shown


def test_it_is_compared_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_run(folder.parent / "base")
    assert compare.main([str(base), str(folder)]) == 0
    assert f"NEW: {SAID}" in capsys.readouterr().out
    page = folder.parent / "page.html"
    assert report([str(base), str(folder), "--out", str(page)]) == 0
    assert SAID in page.read_text()


def test_resuming_it_when_finished_only_shows_it(folder: Path) -> None:
    over = nothing_left(folder, recorded(folder))
    assert over is not None
    assert over.warnings == (SAID,)


def test_it_can_be_neither_continued_nor_joined(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = rf"has no inferences \({REASON}\): it can be neither continued nor joined"
    with pytest.raises(ValueError, match=refused):
        RunWriter(folder, resume=True)
    assert not (folder / "inferences.jsonl").exists()
    assert merge.main([str(folder), "--out", str(folder.parent / "whole")]) == 1
    assert "can be neither continued nor joined" in capsys.readouterr().err
    assert not (folder.parent / "whole").exists()


@pytest.mark.parametrize("reason", [None, ""])
def test_without_a_reason_missing_inferences_are_an_error(folder: Path, reason: str | None) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inferences_left_out": reason}))
    with pytest.raises(FileNotFoundError, match=r"inferences\.jsonl is missing"):
        read_run(folder)


def test_inferences_that_are_there_are_checked_whatever_run_json_says(folder: Path) -> None:
    (folder / "inferences.jsonl").write_text("")
    with pytest.raises(ValueError, match="made 1 inferences, but the file holds"):
        read_run(folder)
