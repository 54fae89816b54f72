"""The expert's table counts successes, failures and errors apart."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from eval.sim.tasks import Task
from tools.oracle_table import Outcome, main, numbers, parse, table

TASKS = [Task("libero_goal", i, f"do thing {i}", "", np.zeros((1, 1))) for i in range(2)]


def test_errors_are_not_failures() -> None:
    outcomes = [
        Outcome(0, 0, 60, True, "carry", None),
        Outcome(0, 1, 300, False, "hover", None),
        Outcome(0, 2, 0, False, "start", "ValueError: no such thing"),
        Outcome(1, 0, 80, True, "pull", None),
    ]
    lines = table(outcomes, TASKS, "title").splitlines()
    first, second, every = lines[4:7]
    assert first.startswith("| 0 do thing 0 | 1 / 2 |")
    assert "1 (hover)" in first
    assert "ValueError: no such thing" in first
    assert second.startswith("| 1 do thing 1 | 1 / 1 |")
    assert every.startswith("| all | 2 / 3 |")


def test_ranges_and_lists_of_states() -> None:
    assert numbers("2-5") == (2, 3, 4, 5)
    assert numbers("0,7") == (0, 7)
    with pytest.raises(argparse.ArgumentTypeError, match="got 'all'"):
        numbers("all")


def test_wrong_numbers_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["out", "--suite", "libero_goal", "--noise", "-1"])
    assert "--noise must be >= 0, got -1.0" in capsys.readouterr().err


@pytest.mark.sim
def test_a_state_of_a_task_is_measured(tmp_path: Path, simulator: dict[str, str]) -> None:
    main([str(tmp_path), "--suite", "libero_goal", "--tasks", "1", "--states", "0-0"])
    [outcome] = json.loads((tmp_path / "libero_goal_noise0.json").read_text())
    assert outcome["success"]
    assert outcome["error"] is None
    assert "| all | 1 / 1 |" in (tmp_path / "libero_goal_noise0.md").read_text()
