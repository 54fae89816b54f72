"""The table of scenes and instructions: what was told, what was reached, what was reached instead."""

import numpy as np
import pytest

from eval.sim.tasks import Task, load_tasks
from tools.instruction_table import SUITE, Trial, goals_of, table

TASKS = [Task("libero_goal", i, f"do thing {i}", "", np.zeros((1, 1))) for i in range(3)]


def test_a_cell_counts_the_goal_that_was_told() -> None:
    trials = [
        Trial(scene=0, told=1, state=0, steps=80, reached=[1]),
        Trial(scene=0, told=1, state=1, steps=300, reached=[2]),
        Trial(scene=0, told=2, state=0, steps=90, reached=[0, 2]),
        Trial(scene=2, told=0, state=0, steps=300, reached=[]),
    ]
    lines = table(trials, TASKS).splitlines()
    assert lines[2] == "| 0 do thing 0 | - | 1 / 2 | 1 / 1 | 2 / 3 |"
    assert lines[3] == "| 1 do thing 1 | - | - | - | - |"
    assert lines[4] == "| 2 do thing 2 | 0 / 1 | - | - | 0 / 1 |"
    assert lines[5] == "| all | 0 / 1 | 1 / 2 | 1 / 1 | 2 / 4 |"
    assert lines[-1] == "- told 1 (do thing 1), reached 2 (do thing 2): 1"


@pytest.mark.sim
def test_goals_are_those_of_libero_s_files(simulator: dict[str, str]) -> None:
    goals = goals_of(load_tasks(SUITE))
    assert goals[1] == [["on", "akita_black_bowl_1", "flat_stove_1_cook_region"]]
    assert len({str(goal) for goal in goals}) == 10
