"""Skills measure what happens and recover: drops, swings, hanging objects, handles that slip out."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from policies.base import Observation
from policies.oracle.expert import GoalExpert
from policies.oracle.places import place, spot
from policies.oracle.servo import CLOSE, OPEN
from policies.oracle.skills.base import Aim
from policies.oracle.skills.carry import Carry
from policies.oracle.skills.choose import choose_skill
from policies.oracle.skills.drawer import Pull, Push
from policies.oracle.skills.plate import Slide
from policies.oracle.view import View
from policies.truth import Predicate, Region, Truth
from tests.policies.oracle.worlds import box, look, moved, ring, with_hand, world

BUTTER_AT = np.array([0.0, 0.0, 0.91])
PLATE_AT = np.array([0.2, 0.2, 0.905])
ON_PLATE = Predicate("on", ("butter_1", "plate_1"))
OPEN_IT = Predicate("open", ("cabinet_1_region",))


def table() -> Truth:
    return world(
        {"butter_1": (box(0.02, 0.045, 0.01), BUTTER_AT), "plate_1": (box(0.07, 0.07, 0.005), PLATE_AT)},
        (ON_PLATE,),
    )


class Toy:
    """A hand that reaches its aim at once, and an object that it holds when `holding`."""

    def __init__(self, truth: Truth, skill: Carry) -> None:
        self.truth, self.skill, self.holding, self.gripper = truth, skill, False, OPEN

    def step(self) -> Aim | None:
        aim = self.skill.act(look(self.truth))
        if aim is None:
            return None
        shift = aim.position - self.truth.grip.position
        if self.holding:
            pose = self.truth.bodies["butter_1_main"]
            self.truth = moved(self.truth, "butter_1", pose.position + shift)
        self.truth = with_hand(self.truth, aim.position, aim.hand)
        self.gripper = aim.gripper
        return aim

    def run_to(self, phase: str, limit: int = 200) -> None:
        for _ in range(limit):
            if self.skill.phase == "lift":
                self.holding = True
            self.step()
            if self.skill.phase == phase:
                return
        raise AssertionError(f"no {phase} in {limit} steps, but {self.skill.phase}")


def test_an_object_is_carried_over_its_place_and_let_go_there() -> None:
    toy = Toy(table(), Carry(ON_PLATE))
    toy.run_to("close")
    assert toy.gripper == CLOSE
    toy.run_to("carry")
    assert toy.truth.bodies["butter_1_main"].position[2] > PLATE_AT[2] + 0.03
    toy.run_to("release")
    assert toy.truth.bodies["butter_1_main"].position[:2] == pytest.approx(PLATE_AT[:2], abs=0.016)
    toy.holding = False
    low = toy.truth.grip.position[2]
    for _ in range(60):
        if toy.step() is None:
            break
    assert toy.gripper == OPEN
    assert toy.truth.grip.position[2] > low + 0.05
    assert toy.step() is None, "there is nothing left to do"


def test_a_dropped_object_is_fetched_from_where_it_lies() -> None:
    toy = Toy(table(), Carry(ON_PLATE))
    toy.run_to("carry")
    toy.holding = False
    fallen = np.array([0.1, 0.05, 0.91])
    toy.truth = moved(toy.truth, "butter_1", fallen)
    toy.step()
    assert toy.skill.phase == "hover"
    assert toy.gripper == OPEN
    toy.run_to("close")
    assert toy.truth.grip.position[:2] == pytest.approx(fallen[:2], abs=0.01)


def test_fingers_that_close_on_nothing_are_not_carried_away() -> None:
    toy = Toy(table(), Carry(ON_PLATE))
    toy.run_to("lift")
    toy.holding = False
    for _ in range(5):
        toy.step()
        if toy.skill.phase == "hover":
            return
    raise AssertionError(f"it did not notice: {toy.skill.phase}")


def test_an_object_that_hangs_on_an_open_finger_is_shaken_off() -> None:
    toy = Toy(table(), Carry(ON_PLATE))
    toy.run_to("retreat")  # it still follows the hand
    for _ in range(3):
        toy.step()
    assert toy.skill.phase == "shake"


def test_an_object_that_fell_over_gets_another_grasp() -> None:
    skill = Carry(Predicate("on", ("milk_1", "plate_1")))
    milk = (box(0.025, 0.025, 0.06), np.array([0.0, 0.0, 0.96]))
    plate = (box(0.07, 0.07, 0.005), PLATE_AT)
    standing = world({"milk_1": milk, "plate_1": plate})
    skill.act(look(standing))
    upright = skill._grasp
    assert upright is not None
    lying = world({"milk_1": (box(0.06, 0.025, 0.025), np.array([0.0, 0.0, 0.925])), "plate_1": plate})
    tipped = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    bodies = dict(lying.bodies)
    bodies["milk_1_main"] = type(bodies["milk_1_main"])(np.array([0.0, 0.0, 0.925]), tipped)
    skill.act(look(Truth(lying.layout, bodies, {}, {}, lying.grip, 0.08)))
    assert skill._grasp is not None
    assert skill._grasp is not upright


def test_one_steps_aside_from_under_what_hangs_over_the_object() -> None:
    shelf = (box(0.1, 0.1, 0.01), BUTTER_AT + np.array([0.09, 0.0, 0.12]))
    skill = Carry(ON_PLATE)
    assert skill._way_out(look(table())) is None
    both = world(
        {
            "butter_1": (box(0.02, 0.045, 0.01), BUTTER_AT),
            "plate_1": (box(0.07, 0.07, 0.005), PLATE_AT),
            "shelf_1": shelf,
        },
        grip=BUTTER_AT,
    )
    aside = skill._way_out(look(both))
    assert aside is not None
    assert aside[0] < BUTTER_AT[0] - 0.03


def drive(
    skill: Pull | Push, value: Callable[[Truth], float], truth: Truth, steps: int, gripper: float = 0.02
) -> Truth:
    """Let the hand reach its aims at once, fingers `gripper` apart; the drawer goes where `value` says."""
    for _ in range(steps):
        aim = skill.act(look(truth))
        if aim is None:
            break
        moment = with_hand(truth, aim.position, aim.hand)
        truth = world({}, drawer=value(moment), grip=aim.position, hand=aim.hand, gripper=gripper)
    return truth


def handle_of(truth: Truth) -> NDArray[np.float64]:
    return look(truth).box("cabinet_1_level")[0]


def test_a_drawer_is_pulled_until_it_is_open_and_then_let_go() -> None:
    truth = world({}, drawer=0.0)
    skill = Pull(OPEN_IT, look(truth))

    def follows(moment: Truth) -> float:
        if skill.phase != "pull":
            return moment.joints["cabinet_1_level"]
        ahead = moment.grip.position[1] - handle_of(moment)[1]
        return max(-0.16, moment.joints["cabinet_1_level"] + ahead)

    truth = drive(skill, follows, truth, 120)
    assert truth.joints["cabinet_1_level"] < -0.15
    assert skill.act(look(truth)) is None


def test_a_handle_that_slips_out_is_taken_again() -> None:
    truth = world({}, drawer=0.0)
    skill = Pull(OPEN_IT, look(truth))
    seen = []

    def stays(moment: Truth) -> float:
        seen.append(skill.phase)
        return 0.0  # whatever the hand does

    drive(skill, stays, truth, 80, gripper=0.003)
    first = seen.index("pull")
    again = first + seen[first:].index("loosen")
    assert "reach" in seen[again:]
    assert "grip" in seen[again:]


def test_a_drawer_is_pushed_shut_from_outside() -> None:
    truth = world({}, drawer=-0.15)
    shut = Push(Predicate("close", ("cabinet_1_region",)), look(truth))
    seen: list[float] = []

    def follows(moment: Truth) -> float:
        value = moment.joints["cabinet_1_level"]
        if shut.phase == "push":
            front = handle_of(moment)[1] - 0.008
            value = min(0.01, value + max(0.0, moment.grip.position[1] - front))
        seen.append(value)
        return value

    truth = drive(shut, follows, truth, 120)
    assert truth.joints["cabinet_1_level"] > 0.0
    assert min(seen) >= -0.15, "it never pulls"


@pytest.mark.parametrize(
    ("predicate", "kind"),
    [
        (OPEN_IT, Pull),
        (Predicate("close", ("cabinet_1_region",)), Push),
        (ON_PLATE, Carry),
    ],
)
def test_each_predicate_has_its_skill(predicate: Predicate, kind: type) -> None:
    objects = {"butter_1": (box(0.02, 0.04, 0.01), BUTTER_AT), "plate_1": (ring(0.07, 0.02), PLATE_AT)}
    assert isinstance(choose_skill(predicate, look(world(objects, drawer=-0.1))), kind)


def on_the_table(truth: Truth) -> Truth:
    """The same with a region of the table, which belongs to no thing."""
    layout = truth.layout
    regions = {"table_front": Region(None, np.array([0.04, 0.04, 0.007]), None)}
    mark = type(truth.grip)(np.array([0.0, 0.3, 0.895]), np.eye(3))
    changed = type(layout)(layout.goal, layout.roots, layout.movable, layout.bodies, regions, layout.joints)
    return Truth(changed, truth.bodies, {"table_front": mark}, truth.joints, truth.grip, truth.gripper)


def test_a_plate_is_pushed_over_the_table_and_not_carried() -> None:
    truth = on_the_table(world({"plate_1": (ring(0.07, 0.02), PLATE_AT)}))
    skill = choose_skill(Predicate("on", ("plate_1", "table_front")), look(truth))
    assert isinstance(skill, Slide)
    for _ in range(60):
        aim = skill.act(look(truth))
        assert aim is not None
        assert aim.gripper == CLOSE
        truth = with_hand(truth, aim.position, aim.hand)
        if skill.phase == "push":
            break
    way = np.array([0.0, 0.3]) - PLATE_AT[:2]
    behind = (truth.grip.position[:2] - PLATE_AT[:2]) @ way / np.linalg.norm(way)
    assert behind < -0.05


def test_a_second_object_is_placed_beside_the_first() -> None:
    basket = Region("basket_1", np.array([0.06, 0.06, 0.06]), None)
    truth = world(
        {
            "butter_1": (box(0.02, 0.03, 0.01), BUTTER_AT),
            "milk_1": (box(0.02, 0.02, 0.05), PLATE_AT + np.array([0.02, 0.0, 0.05])),
            "basket_1": (box(0.07, 0.07, 0.005), PLATE_AT),
        }
    )
    pose = type(truth.grip)(PLATE_AT + np.array([0.0, 0.0, 0.06]), np.eye(3))
    layout = truth.layout
    changed = type(layout)(
        layout.goal, layout.roots, layout.movable, layout.bodies, {"basket_1_in": basket}, layout.joints
    )
    view = View(Truth(changed, truth.bodies, {"basket_1_in": pose}, {}, truth.grip, 0.08), look(truth).shapes)
    predicate = Predicate("in", ("butter_1", "basket_1_in"))
    offset = spot(view, predicate, "butter_1")
    assert offset[0] < -0.02
    assert np.all(np.abs(offset) < 0.06)
    assert place(view, predicate, "butter_1", offset).origin[:2] == pytest.approx(PLATE_AT[:2] + offset)


def test_a_hand_that_does_not_get_on_goes_home_first() -> None:
    expert, truth = GoalExpert(), table()
    for _ in range(40):
        expert.act(Observation({}, np.zeros(8), "", truth=truth))
        if expert.phase == "home":
            return
    raise AssertionError(expert.phase)


def test_an_expert_without_truth_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"needs Observation\.truth"):
        GoalExpert().act(Observation({}, np.zeros(8), ""))
