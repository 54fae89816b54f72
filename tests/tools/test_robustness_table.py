"""Cells hold both arms of perturbed suites, whole."""

from eval.sim.tasks import load_tasks
from tools.robustness_table import plan_cells


def test_cells_hold_every_task_of_both_arms_once_and_one_prompt_each() -> None:
    suites = ["libero_spatial_plus_camera", "libero_goal_lan"]
    cells = plan_cells(suites, states=4, tasks_a_cell=25, states_a_cell=3)
    assert len({cell.folder for cell in cells}) == len(cells)
    for suite, count, states in zip(suites, (376, 10), (1, 4), strict=True):
        for control in (False, True):
            own = [cell for cell in cells if (cell.suite, cell.control) == (suite, control)]
            firsts = [(task, cell.first, cell.count) for cell in own for task in cell.tasks]
            episodes = [(task, first + i) for task, first, number in firsts for i in range(number)]
            assert len(episodes) == len(set(episodes)) == count * states
    words = {task.task_id: task.language for task in load_tasks(suites[0])}
    for cell in cells:
        assert cell.chosen[1] == f"suite.control={'true' if cell.control else 'false'}"
        if cell.suite == suites[0]:
            assert {words[task] for task in cell.tasks} == {cell.words}
