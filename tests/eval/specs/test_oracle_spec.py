"""policy=oracle says at the start which tasks it cannot do, and why."""

import pytest

from eval.config.schema import ConfigError
from eval.sim.plus import plus_tasks
from eval.specs.oracle import refuse
from policies.oracle.served import CANNOT


def test_a_task_that_the_oracle_cannot_do_is_refused_with_the_reason_and_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"suite=libero_10: 9 \(.*microwave.*\).*suite\.tasks=\[0,3\]"):
        refuse("libero_10", [0, 9, 3], None)


def test_a_whole_suite_is_refused_where_one_task_is() -> None:
    with pytest.raises(ConfigError, match="9 "):
        refuse("libero_10", None, None)


def test_tasks_that_are_not_asked_for_do_not_matter() -> None:
    refuse("libero_10", [0, 8], None)
    refuse("libero_10", None, 3)  # protocol.num_tasks


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal"])
def test_three_suites_are_served_whole(suite: str) -> None:
    assert suite not in CANNOT
    refuse(suite, None, None)


def test_a_perturbed_task_is_refused_as_its_base_task_is() -> None:
    mine = [task.task_id for task in plus_tasks("libero_10", "camera") if task.base_task_id == 9]
    with pytest.raises(ConfigError, match=rf"suite=libero_10_plus_camera: {mine[0]} \(.*microwave"):
        refuse("libero_10_plus_camera", None, None)
    refuse("libero_10_plus_camera", [mine[0] - 1], None)
    refuse("libero_10_plus_camera", None, 5)
    refuse("libero_10_plus_camera", [9], None)  # of base task 0
    with pytest.raises(ConfigError, match=r"suite=libero_10_swap_control: 9 \("):
        refuse("libero_10_swap_control", None, None)
