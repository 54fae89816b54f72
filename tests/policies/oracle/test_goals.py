"""The expert reads a goal as LIBERO checks it, and does its parts in an order that works."""

import numpy as np
import pytest

from policies.oracle.goals import holds, next_step
from policies.truth import Predicate
from tests.policies.oracle.worlds import DRAWER, box, look, world

OPEN_IT = Predicate("open", ("cabinet_1_region",))
PUT_IN = Predicate("in", ("butter_1", "cabinet_1_region"))
SHUT_IT = Predicate("close", ("cabinet_1_region",))
BUTTER = {"butter_1": (box(0.02, 0.04, 0.01), np.array([-0.1, 0.0, 0.91]))}
IN_DRAWER = {"butter_1": (box(0.02, 0.04, 0.01), np.array([0.0, 0.15, 1.0]))}


@pytest.mark.parametrize(("value", "is_open", "is_shut"), [(0.001, 0, 1), (-0.1, 0, 0), (-0.15, 1, 0)])
def test_a_drawer_is_open_or_shut_where_libero_says_so(value: float, is_open: int, is_shut: int) -> None:
    view = look(world({}, drawer=value))
    assert holds(view, OPEN_IT) == is_open
    assert holds(view, SHUT_IT) == is_shut


def test_a_knob_is_on_from_half_a_radian() -> None:
    ranges = {"turnon": (0.5, 2.1), "turnoff": (-0.005, 0.0)}
    knob = DRAWER.__class__("knob", "hinge", DRAWER.axis, DRAWER.anchor, (-0.005, 2.1), ranges, 0)
    assert [knob.holds("turnon", q) for q in (0.0, 0.49, 0.5, 2.0)] == [False, False, True, True]
    assert [knob.holds("turnoff", q) for q in (-0.001, 0.0, 1.0)] == [True, False, False]


def test_a_microwaves_door_opens_towards_negative_values() -> None:
    ranges = {"open": (-2.094, -1.3), "close": (-0.005, 0.0)}
    door = DRAWER.__class__("door", "hinge", DRAWER.axis, DRAWER.anchor, (-2.094, 0.0), ranges, 0)
    assert [door.holds("close", q) for q in (-1.5, -0.01, -0.001)] == [False, False, True]
    assert [door.holds("open", q) for q in (-1.5, -1.2)] == [True, False]


def test_a_shut_drawer_is_opened_before_something_goes_in() -> None:
    assert next_step(look(world(BUTTER, (PUT_IN, SHUT_IT), drawer=0.001))) == OPEN_IT
    assert next_step(look(world(BUTTER, (PUT_IN, SHUT_IT), drawer=-0.15))) == PUT_IN


def test_a_drawer_is_shut_last_and_then_there_is_nothing_to_do() -> None:
    assert next_step(look(world(IN_DRAWER, (SHUT_IT, PUT_IN), drawer=-0.15))) == SHUT_IT
    shut = {"butter_1": (IN_DRAWER["butter_1"][0], np.array([0.0, 0.3, 1.0]))}
    assert next_step(look(world(shut, (SHUT_IT, PUT_IN), drawer=0.001))) is None


def test_what_carries_others_is_placed_before_them() -> None:
    bowls = {
        "akita_black_bowl_1": (box(0.05, 0.05, 0.02), np.array([0.0, 0.0, 0.9])),
        "akita_black_bowl_2": (box(0.05, 0.05, 0.02), np.array([0.2, 0.0, 0.9])),
    }
    on = Predicate("on", ("akita_black_bowl_1", "akita_black_bowl_2"))
    inside = Predicate("on", ("akita_black_bowl_2", "butter_1"))
    assert next_step(look(world({**bowls, **BUTTER}, (on, inside)))) == inside


def test_on_a_thing_is_within_liberos_three_centimetres() -> None:
    on = Predicate("on", ("butter_1", "plate_1"))
    for aside, expected in ((0.02, True), (0.04, False)):
        plate = (box(0.07, 0.07, 0.005), np.array([-0.1 + aside, 0.0, 0.9]))
        assert holds(look(world({**BUTTER, "plate_1": plate})), on) is expected
