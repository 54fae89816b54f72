"""The expert takes hold of things where the hand fits, and of what stands free."""

import numpy as np
import pytest

from policies.oracle.grasps import GRASPS, choose_grasp, kind_of, rim_of
from policies.oracle.hand import from_above, touches, towards
from policies.oracle.view import fit_circle
from policies.truth import Boxes
from tests.policies.oracle.worlds import box, look, ring, world

AT = np.array([0.0, 0.0, 0.91])


def joined(*parts: Boxes) -> Boxes:
    return Boxes(*(np.concatenate(arrays) for arrays in zip(*(vars(p).values() for p in parts), strict=True)))


def test_a_box_is_taken_across_its_short_side() -> None:
    view = look(world({"butter_1": (box(0.02, 0.045, 0.01), AT)}))
    grasp = choose_grasp(view, "butter_1")
    assert grasp is not None
    point, hand = grasp.at(view.pose("butter_1"))
    assert abs(hand[0, 0]) > 0.99
    assert point[:2] == pytest.approx(AT[:2], abs=0.003)
    assert hand[:, 2] == pytest.approx([0.0, 0.0, -1.0])


def test_what_is_wider_than_the_hand_has_no_grasp() -> None:
    assert choose_grasp(look(world({"butter_1": (box(0.05, 0.05, 0.05), AT)})), "butter_1") is None


def test_a_tall_thing_is_taken_near_its_top_and_a_flat_one_above_its_bottom() -> None:
    for half, expected in ((0.07, AT[2] + 0.07 - 0.030), (0.01, AT[2])):
        grasp = choose_grasp(look(world({"milk_1": (box(0.02, 0.02, half), AT)})), "milk_1")
        assert grasp is not None
        assert grasp.point[2] + AT[2] == pytest.approx(expected, abs=1e-6)


def test_a_neighbour_where_the_palm_would_be_changes_the_grasp() -> None:
    butter = (box(0.02, 0.045, 0.01), AT)
    milk = (box(0.02, 0.02, 0.07), AT + np.array([0.08, 0.0, 0.06]))
    alone, beside = look(world({"butter_1": butter})), look(world({"butter_1": butter, "milk_1": milk}))
    free, chosen = choose_grasp(alone, "butter_1"), choose_grasp(beside, "butter_1")
    assert free is not None
    assert chosen is not None
    points = beside.points("milk_1")
    counts = [touches(points, *grasp.at(beside.pose("butter_1")), 0.08) for grasp in (free, chosen)]
    assert counts[1] < counts[0]


def test_a_grasp_that_failed_is_not_taken_again_at_once() -> None:
    view = look(world({"akita_black_bowl_1": (ring(0.05, 0.05), AT)}))
    first = choose_grasp(view, "akita_black_bowl_1")
    assert first is not None
    second = choose_grasp(view, "akita_black_bowl_1", [first])
    assert second is not None
    assert float(np.linalg.norm(second.point - first.point)) > 0.02


def test_the_rim_of_a_mug_is_found_beside_its_handle() -> None:
    mug = joined(ring(0.045, 0.1), box(0.004, 0.02, 0.03, at=(0.0, 0.065, 0.066)))
    view = look(world({"porcelain_mug_1": (mug, AT)}))
    centre, radius = rim_of(view.points("porcelain_mug_1"))
    assert centre == pytest.approx([0.0, 0.0, AT[2] + 0.1], abs=0.002)
    assert radius == pytest.approx(0.045, abs=0.002)
    grasp = choose_grasp(view, "porcelain_mug_1")
    assert grasp is not None
    assert np.hypot(*grasp.point[:2]) == pytest.approx(0.041, abs=0.003)


def test_a_circle_is_fitted_without_points_far_off_it() -> None:
    angles = np.linspace(0.0, 2 * np.pi, 40)
    circle = np.array([0.3, -0.1]) + 0.05 * np.column_stack([np.cos(angles), np.sin(angles)])
    centre, radius = fit_circle(np.concatenate([circle, [[0.5, -0.1], [0.51, -0.1]]]))
    assert centre == pytest.approx([0.3, -0.1], abs=1e-3)
    assert radius == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("yaw", [0.0, 45.0, 90.0, 135.0])
@pytest.mark.parametrize("tilt", [0.0, 35.0])
def test_orientations_are_rotations_that_close_along_the_wanted_line(yaw: float, tilt: float) -> None:
    hand = from_above(yaw, tilt)
    assert hand.T @ hand == pytest.approx(np.eye(3))
    assert np.linalg.det(hand) == pytest.approx(1.0)
    line = np.array([np.cos(np.deg2rad(yaw)), np.sin(np.deg2rad(yaw)), 0.0])
    assert abs(float(hand[:, 0] @ line)) == pytest.approx(1.0)
    assert hand[2, 2] == pytest.approx(-np.cos(np.deg2rad(tilt)))


@pytest.mark.parametrize("direction", [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]])
def test_a_hand_for_a_handle_points_at_it_and_closes_up_and_down(direction: list[float]) -> None:
    hand = towards(np.array(direction), 12.0)
    assert float(hand[:, 2] @ direction) == pytest.approx(np.cos(np.deg2rad(12.0)))
    assert hand[2, 2] == pytest.approx(-np.sin(np.deg2rad(12.0)))
    assert abs(hand[2, 0]) > 0.9


def test_kinds_are_names_without_numbers() -> None:
    assert kind_of("akita_black_bowl_2") == "akita_black_bowl"
    assert kind_of("wine_bottle_1") in GRASPS


def test_a_kind_without_a_grasp_is_named() -> None:
    view = look(world({"chefmate_8_frypan_1": (box(0.02, 0.02, 0.02), AT)}))
    with pytest.raises(ValueError, match="no grasp for chefmate_8_frypan_1"):
        choose_grasp(view, "chefmate_8_frypan_1")
