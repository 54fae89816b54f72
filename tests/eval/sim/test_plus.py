"""LIBERO-Plus's viewpoints and arm poses are its released code's, on its own examples."""

import numpy as np
import pytest

from eval.sim.camera import View
from eval.sim.plus import NEUTRAL, Perturbation, plus_tasks
from eval.sim.robot import HOME, NUM_POSES, arm_pose
from eval.sim.suites import PERTURBED

TABLETOP = (
    np.array([0.6586131746834771, 0, 1.6103500240372423]),
    np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349]),
)
FLOOR = (
    np.array([0.8965773716836134, 5.216182733499864e-07, 0.65]),
    np.array([0.6182166934013367, 0.3432307541370392, 0.3432314395904541, 0.6182177066802979]),
)


@pytest.mark.parametrize(
    ("own", "view", "position", "quat"),
    [
        (TABLETOP, View(11, 15), (0.4186, 0.0814, 1.7532), (0.6048, 0.1970, 0.2390, 0.7337)),
        (TABLETOP, View(distance=161), (1.0603, 0, 2.1047), (0.638, 0.3048, 0.3048, 0.638)),
        (TABLETOP, View(316), (0.4738, -0.4575, 1.6104), (-0.8306, -0.3969, -0.1685, -0.3526)),
        (
            TABLETOP,
            View(yaw=8, pitch=352),
            (0.6586, 0, 1.6104),
            (-0.5679, -0.3296, -0.3658, -0.6596),
        ),
        (TABLETOP, View(), (0.6586, 0, 1.6104), (0.638, 0.3048, 0.3048, 0.638)),
        (FLOOR, View(11, 15), (0.8883, 0.1727, 0.8872), (0.5917, 0.2335, 0.2833, 0.7177)),
    ],
)
def test_a_view_is_the_released_codes_to_four_decimals(
    own: tuple[np.ndarray, np.ndarray], view: View, position: tuple[float, ...], quat: tuple[float, ...]
) -> None:
    moved, turned = view.move(*own)
    assert moved.tolist() == list(position)
    assert turned.tolist() == list(quat)


def test_poses_are_the_released_codes_to_eight_decimals() -> None:
    assert arm_pose(401).tolist() == [
        *(0.02700254, 0.23452894, 0.05138039, -2.59207806),
        *(-0.01402227, 1.96584821, 0.77355927),
    ]
    assert arm_pose(23).tolist() == [
        *(0.01099719, -0.18784257, 0.07001095, -2.42681746),
        *(-0.04470224, 2.25138859, 0.7488244),
    ]
    assert np.array_equal(arm_pose(0), HOME)
    away = [np.linalg.norm(arm_pose(number) - HOME) for number in range(1, NUM_POSES + 1)]
    np.testing.assert_allclose(away, np.repeat([0.1, 0.2, 0.3, 0.4, 0.5], 100), atol=1e-7)
    for number in (-1, 501):
        with pytest.raises(ValueError, match=f"a pose of the arm is 0 to 500, got {number}"):
            arm_pose(number)


def test_each_task_of_the_table_changes_one_thing() -> None:
    names = {"camera": "view", "robot": "pose", "noise": "noise"}
    for base in PERTURBED:
        for dimension, name in names.items():
            for task in plus_tasks(base, dimension):
                neutral = [
                    part
                    for part in names.values()
                    if getattr(task.perturbation, part) == getattr(NEUTRAL, part)
                ]
                assert sorted([*neutral, name]) == sorted(names.values())
        assert all(task.perturbation == NEUTRAL and task.variant for task in plus_tasks(base, "language"))


def test_a_perturbation_is_spelled_as_pluss_names_spell_it() -> None:
    assert Perturbation(View(11, 15), noise=38).words == "view 11 15 100 0 0 initstate 0 noise 38"
    assert Perturbation(pose=401).words == "view 0 0 100 0 0 initstate 401"
