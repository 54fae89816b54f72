"""What a skill is: a machine of phases that says at every call where the hand should be."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from policies.oracle.hand import PALM_BEHIND
from policies.oracle.servo import OPEN
from policies.oracle.view import UP, View, between, highest_between, plane, turn

Array = NDArray[np.float64]

ALIGNED = 0.015  # metres off at which the hand may go down
ASTRAY = 0.035  # ... at which it must go back
LEVEL_RAD = 0.2
TRAVEL_PATIENCE = 60  # steps after which something blocks a way
CONTACT_PATIENCE = 30
CLOSE_STEPS = 11  # the gripper needs 8 to shut
OPEN_STEPS = 8
CLEARANCE = 0.025
NEAR_BY = 0.06  # metres from a target at which the hand goes straight there, where nothing lies
FREE = 0.03  # this near the way
OVERHEAD = 0.12  # metres beside the hand within which something hangs over it
EXACT_STEPS = 25  # of travel, after which less exact positions will do, up to twice as far off
TRAVELLING = ("hover", "approach")  # phases of an empty hand on its way


@dataclass(frozen=True)
class Aim:
    """Where the grip site should be, how the hand is turned, and whether the fingers open or close."""

    position: Array
    hand: Array
    gripper: float


class Skill(Protocol):
    phase: str
    fresh: bool  # the servo must forget what it has learnt

    def act(self, view: View) -> Aim | None:
        """Choose the next aim; None when there is nothing left to do."""
        ...


class Machine:
    """Counts the steps of a phase."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.steps = 0
        self.fresh = True

    def enter(self, phase: str, *, fresh: bool = False) -> None:
        self.phase, self.steps = phase, 0
        self.fresh |= fresh


def miss(view: View, position: Array) -> float:
    return float(np.linalg.norm(position - view.grip))


def level(view: View, hand: Array, tolerance_rad: float = LEVEL_RAD) -> bool:
    return float(np.linalg.norm(turn(hand, view.hand))) < tolerance_rad


def settled(view: View, position: Array, hand: Array, within: float, steps: int) -> bool:
    """Whether the hand is where it should be before it goes down; noise may keep it from being there exactly.

    Args:
        steps: spent in this phase.
    """
    slack = float(np.clip(steps / EXACT_STEPS, 1.0, 2.0))
    return miss(view, position) < slack * within and level(view, hand, slack * LEVEL_RAD)


def above_obstacles(view: View, points: Array, target: Array) -> float:
    """The height at which the empty hand can travel to above `target` without touching `points`."""
    fingers = highest_between(points, view.grip, target, 0.06) + CLEARANCE
    palm = highest_between(points, view.grip, target, 0.11) - 0.033 + CLEARANCE
    return max(fingers, palm)


def transit(view: View, points: Array, target: Array) -> Array:
    """The next point on the way of the empty hand: up, over what stands between, and down."""
    if plane(target - view.grip) < 0.03:
        return target
    if miss(view, target) < NEAR_BY and not between(points, view.grip, target, FREE):
        return target
    height = max(above_obstacles(view, points, target), float(target[2]))
    if view.grip[2] < height - ALIGNED:
        above = points[points[:, 2] > view.grip[2] - PALM_BEHIND]
        under = (np.linalg.norm((above - view.grip)[:, :2], axis=1) < OVERHEAD).any()
        # A tilted hand that is under something came from there.
        back = -view.hand[:, 2] if under and view.hand[2, 2] < -0.6 else UP
        return view.grip + (height + 0.01 - view.grip[2]) * back / back[2]
    return np.append(target[:2], height + 0.005)


class Home(Machine):
    """Go back to where the hand was when the episode began: from there it can reach everything."""

    def __init__(self, position: Array, hand: Array) -> None:
        super().__init__("home")
        self._position, self._hand = position, hand

    def act(self, view: View) -> Aim | None:
        self.steps += 1
        near = miss(view, self._position) < 0.12 and level(view, self._hand)
        if near or self.steps > 40:
            return None
        return Aim(self._position, self._hand, OPEN)
