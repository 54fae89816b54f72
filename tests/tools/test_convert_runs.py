"""Old runs of one task each become one run in today's form, or an error that names the part."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.summary import summarise
from eval.records.reader import read_run
from tests.eval.written_runs import write_run
from tools.convert_runs import main

TASKS = range(10)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Runs of two episodes of a task, as they were before run.json said which episodes were planned."""
    protocol = {"name": "full", "num_tasks": 10, "first_episode": 0, "episodes": 2}
    whole = write_run(tmp_path / "whole", count=20, failures=(3,))
    run = json.loads((whole / "run.json").read_text()) | {"planned_episodes": 2}
    lines = (whole / "episodes.jsonl").read_text().splitlines()
    for task in TASKS:
        part = tmp_path / f"t{task}"
        part.mkdir()
        config = {"suite": {"name": "libero_spatial", "tasks": [task]}, "protocol": protocol, "seed": 7}
        facts = {"config": config, "first_frame_sha256": f"{task}"}
        (part / "run.json").write_text(json.dumps(run | facts))
        own = [f"{line}\n" for line in lines if json.loads(line)["task_id"] == task]
        (part / "episodes.jsonl").write_text("".join(own))
    return [tmp_path / f"t{task}" for task in TASKS]


def convert(parts: list[Path], out: Path) -> int:
    return main([*map(str, parts), "--out", str(out), "--left-out", "a machine was shared"])


def test_the_parts_become_one_run_that_says_what_is_left_out(parts: list[Path], tmp_path: Path) -> None:
    assert convert(parts, tmp_path / "out") == 0
    run = read_run(tmp_path / "out")
    assert run.warnings == ("inferences were left out: a machine was shared",)
    summary = summarise(run)
    assert (summary.total.successes, summary.episodes, summary.planned_episodes) == (19, 20, 20)
    assert [stage.calls for stage in summary.engagement] == [200, 200, 200]
    assert [plan["tasks"] for plan in run.run["episodes"]] == [[task] for task in TASKS]
    assert [part["folder"] for part in run.run["parts"]] == [f"t{task}" for task in TASKS]
    assert [part["first_frame_sha256"] for part in run.run["parts"]] == [f"{task}" for task in TASKS]
    joined = "".join((part / "episodes.jsonl").read_text() for part in parts)
    assert (tmp_path / "out" / "episodes.jsonl").read_text() == joined


def test_a_run_alone_only_gains_its_plan_and_the_reason(parts: list[Path], tmp_path: Path) -> None:
    assert convert(parts[:1], tmp_path / "out") == 0
    before, after = (json.loads((run / "run.json").read_text()) for run in (parts[0], tmp_path / "out"))
    added = {name: after.pop(name) for name in ("episodes", "inferences_left_out")}
    assert after == before
    assert added["inferences_left_out"] == "a machine was shared"
    assert (added["episodes"][0]["tasks"], added["episodes"][0]["count"]) == ([0], 2)


def change(part: Path, edit: Callable[[Any], None]) -> None:
    run = json.loads((part / "run.json").read_text())
    edit(run)
    (part / "run.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda part: (part / "inferences.jsonl").touch(), "has inferences; join such parts with eval.merge"),
        (lambda part: (part / "episodes.jsonl").write_text(""), "does not hold each planned episode once"),
        (
            lambda part: change(part, lambda run: run["policy"].update(denoise_steps=9)),
            "denoise_steps was 10",
        ),
        (
            lambda part: change(part, lambda run: run["provenance"]["git"].update(commit="ff")),
            "another origin",
        ),
        (lambda part: shutil.rmtree(part), "No such file"),
    ],
)
def test_parts_that_are_not_of_one_run_are_refused(
    parts: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    damage(parts[4])
    assert convert(parts, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(parts[4]) in error
    assert not (tmp_path / "out").exists()
