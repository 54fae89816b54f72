"""Runs side by side for readers: what the sentences say, and that both forms have the same cells."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from eval.analysis.overview import Overview, overview
from eval.analysis.sources import read_sources
from eval.analysis.summary import RANDOM_WEIGHTS
from eval.records.schema import to_plain
from eval.render.overview import COLUMNS, headline, markdown, notes, render, rows
from tests.eval.written_runs import write_run


@pytest.fixture(autouse=True)
def _no_power_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def side_by_side(*folders: Path, margin: float = 2.0) -> Overview:
    return overview([source for folder in folders for source in read_sources(folder)], margin)


def test_the_headline_names_the_fastest_that_passed_and_what_lost(tmp_path: Path) -> None:
    result = side_by_side(
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", policy="fast", infer_ms=5.0),
        write_run(tmp_path / "c", policy="broken", infer_ms=4.0, failures=range(60)),
    )
    first, best, inferior = headline(result)
    assert first.startswith(
        "baseline, 10 steps: 200 of 200 episodes succeeded (95 % interval 98.1 to 100.0 %)"
    )
    latency = result.entries[0].latency
    assert latency is not None
    assert first.endswith(f"(median, n = 200; {1000 / latency.mean_ms:.1f} Hz by the mean)")
    assert best.startswith(
        "Fastest of those shown to lose less than 2 points of success: fast, 10 steps, "
        "5.2 ms (n = 200; 4.00x)"
    )
    assert inferior == "Shown to lose more than 2 points: broken, 10 steps"


def test_too_few_pairs_are_said(tmp_path: Path) -> None:
    result = side_by_side(write_run(tmp_path / "a", count=20), write_run(tmp_path / "b", count=20))
    assert headline(result)[1].endswith("20 pairs could show 16.1 points at best, 2 points would take 189")


def test_flags_problems_and_runs_without_numbers_are_noted(tmp_path: Path) -> None:
    random = {"run": {"weights_label": RANDOM_WEIGHTS}, "weights_label": RANDOM_WEIGHTS}
    missed = {"denoise": {"backend": "x", "calls": 200, "misses": 1}}
    result = side_by_side(
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", errors=[3, 4], **random),
        write_run(tmp_path / "c", policy="x", run={"engagement": missed}),
        write_run(tmp_path / "d", count=0),
    )
    lines = notes(result)
    assert lines[:2] == [
        f"2 baseline, 10 steps (2): {RANDOM_WEIGHTS}",
        "2 baseline, 10 steps (2): 2 errors",
    ]
    assert lines[2].startswith(f"2 baseline, 10 steps (2): not comparable: this run has {RANDOM_WEIGHTS}")
    assert "3 x, 10 steps: denoise: 1 calls missed x" in lines
    assert lines[-1] == f"{tmp_path / 'd'}: no numbers: no episode is recorded"


def test_the_markdown_has_the_cells_of_the_table(tmp_path: Path) -> None:
    result = side_by_side(write_run(tmp_path / "a"), write_run(tmp_path / "b", policy="a|b", infer_ms=5.0))
    [first, second] = rows(result)
    assert first[2:4] == ("200 / 200", "98.1 to 100.0 %")
    assert first[4:] == ("200", "20.60", "21.20", "48.6", "-", "-")
    assert second[0] == "2*"
    assert second[-2:] == ("4.00x", "non-inferior")
    text = markdown(result, "Sweep x")
    assert "| " + " | ".join(first) + " |" in text
    assert r"a\|b, 10 steps" in text
    assert text.count("\n|") == 2 + len(result.entries)
    assert all(len(row) == len(COLUMNS) for row in rows(result))
    to_plain(result.to_dict(), "overview")


def test_the_console_says_random_weights_first_and_the_headline_last(tmp_path: Path) -> None:
    random = {"run": {"weights_label": RANDOM_WEIGHTS}, "weights_label": RANDOM_WEIGHTS}
    result = side_by_side(write_run(tmp_path / "a", **random), write_run(tmp_path / "b"))
    file = io.StringIO()
    Console(file=file, width=300).print(render(result))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[0] == f"*** {RANDOM_WEIGHTS} ***"
    assert lines[-3:] == ["", *headline(result)]
    assert "Runs side by side (verdict at a margin of 2 points of success)" in lines


def test_one_of_a_thing_is_singular_and_load_is_said_in_full(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", count=1)
    result = side_by_side(first, write_run(tmp_path / "b", count=1), margin=1.0)
    lines = headline(result)
    assert lines[0].startswith("baseline, 10 steps: 1 of 1 episode succeeded")
    assert "less than 1 point of success" in lines[1]
    assert "1 pair could show" in lines[1]
    text = markdown(result, "Sweep x")
    assert "(verdict at a margin of 1 point of success):" in text
    assert "left out are warm-up inferences and those that other episodes ran beside" in text
