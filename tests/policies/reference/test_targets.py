"""Targets of the auxiliary loss: positions from the grip, NaN where the goal names nothing."""

import numpy as np

from policies.reference.targets import NUM_TARGETS, targets
from policies.truth import Body, Boxes, Joint, Layout, Pose, Predicate, Region, Truth

QUARTER = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # about z
GRIP = np.array([0.1, 0.2, 1.0])
BOWL, REGION, HANDLE = np.array([0.0, 0.1, 0.9]), np.array([0.0, -0.3, 1.0]), np.array([0.0, -0.15, 1.0])


def make_truth(*goal: Predicate) -> Truth:
    """A cabinet at y = -0.3, turned by 90 degrees, whose drawer has its handle 0.15 m before it."""
    boxes = Boxes(np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]]), np.stack([np.eye(3)] * 2), np.ones((2, 3)))
    joint = Joint("drawer", "slide", np.array([1.0, 0, 0]), np.zeros(3), (0.0, 0.2), {"open": (0.1, 0.2)}, 1)
    none = Boxes(np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3)))
    layout = Layout(
        goal=goal,
        roots={"bowl_1": "bowl_1_main", "cabinet_1": "cabinet"},
        movable=frozenset(("bowl_1",)),
        bodies={"bowl_1_main": Body("bowl_1", none), "drawer": Body("cabinet_1", boxes)},
        regions={
            "cabinet_1_top": Region("cabinet_1", np.ones(3), "level"),
            "mark": Region(None, np.ones(3), None),
        },
        joints={"level": joint},
    )
    return Truth(
        layout=layout,
        bodies={"bowl_1_main": Pose(BOWL, QUARTER), "drawer": Pose(REGION, QUARTER)},
        regions={"cabinet_1_top": Pose(REGION, np.eye(3)), "mark": Pose(np.zeros(3), np.eye(3))},
        joints={"level": 0.0},
        grip=Pose(GRIP, np.eye(3)),
        gripper=0.08,
    )


def rows_of(*goal: Predicate) -> np.ndarray:
    seen = targets(make_truth(*goal))
    assert seen.shape == (NUM_TARGETS,)
    np.testing.assert_array_equal(seen[-3:], GRIP)
    return seen[:-3].reshape(-1, 3)


def test_on_gives_the_object_and_its_place_from_the_grip() -> None:
    rows = rows_of(Predicate("on", ("bowl_1", "mark")))
    np.testing.assert_allclose(rows[:2], [BOWL - GRIP, -GRIP])
    assert np.isnan(rows[2:]).all()


def test_open_gives_the_handle_wherever_the_drawer_stands() -> None:
    rows = rows_of(Predicate("open", ("cabinet_1_top",)))
    np.testing.assert_allclose(rows[0], HANDLE - GRIP)
    assert np.isnan(rows[1:]).all()


def test_into_a_drawer_gives_the_object_the_place_and_the_handle() -> None:
    rows = rows_of(Predicate("in", ("bowl_1", "cabinet_1_top")))
    np.testing.assert_allclose(rows[:3], [BOWL - GRIP, REGION - GRIP, HANDLE - GRIP])
    assert np.isnan(rows[3]).all()


def test_a_long_goal_gives_as_many_numbers() -> None:
    rows = rows_of(*[Predicate("on", ("bowl_1", "mark"))] * 3)
    assert np.isfinite(rows).all()
