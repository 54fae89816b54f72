"""Pull a drawer open by its handle, and push it shut."""

import numpy as np
from numpy.typing import NDArray

from policies.oracle.goals import joints_of
from policies.oracle.hand import from_above, towards, turned
from policies.oracle.servo import CLOSE, OPEN
from policies.oracle.skills.base import (
    ASTRAY,
    CLOSE_STEPS,
    CONTACT_PATIENCE,
    OPEN_STEPS,
    TRAVEL_PATIENCE,
    Aim,
    Machine,
    miss,
    settled,
    transit,
)
from policies.oracle.view import UP, View
from policies.truth import Predicate

Array = NDArray[np.float64]

BELOW_DEG = 12.0  # the hand points this much below the horizontal: the palm passes under the handle above
STAND_OFF = 0.09
PULL = 0.02  # metres that the aim runs ahead of the handle: a faster hand loses it
DEEP = 0.008  # of the grip beyond the middle of the bar
LOST = 0.03  # metres from the grip to the handle at which it has slipped out of the fingers
EMPTY = 0.6  # share of the bar's thickness; fingers that are closer hold nothing
GENTLE = 0.025  # metres that the aim runs ahead of the hand on the way to the handle
OPENED = 0.97  # of the way; LIBERO asks for 0.88
LEAN_DEG = 35.0  # a hand that pushes leans away from the front
BEYOND = 0.02


class Pull(Machine):
    """APPROACH, REACH, GRIP, PULL, OPEN, BACK; LOOSEN and REACH again where the handle slips out."""

    def __init__(self, predicate: Predicate, view: View) -> None:
        super().__init__("approach")
        [self._joint] = joints_of(view.truth.layout, predicate.arguments[0])
        self._shift = 0.0  # along the handle, another at each attempt
        self._attempts = 0

    def act(self, view: View) -> Aim | None:
        outward = view.axis(self._joint)
        hand = towards(-outward, BELOW_DEG)
        centre, _, _ = view.box(self._joint)
        handle = centre + self._shift * np.cross(UP, outward) + DEEP * hand[:, 2]
        self._advance(view, handle, hand)
        self.steps += 1
        match self.phase:
            case "approach":
                goal = handle - STAND_OFF * hand[:, 2]
                return Aim(transit(view, view.others(), goal), hand, OPEN)
            case "reach":  # slowly: a push would shut the drawer again
                error = handle - view.grip
                depth = float(error @ hand[:, 2])
                return Aim(handle - max(0.0, depth - GENTLE) * hand[:, 2], hand, OPEN)
            case "grip":
                return Aim(handle, hand, CLOSE)
            case "pull":
                return Aim(handle + PULL * outward, hand, CLOSE)
            case "open" | "loosen":
                return Aim(view.grip, hand, OPEN)
            case _:
                goal = handle - STAND_OFF * hand[:, 2]
                if miss(view, goal) < 0.025 or self.steps > CONTACT_PATIENCE:
                    return None
                return Aim(goal, hand, OPEN)

    def _advance(self, view: View, handle: Array, hand: Array) -> None:
        layout = view.truth.layout
        low, high = layout.joints[self._joint].limits
        share = view.truth.joints[self._joint] / (high if high > -low else low)
        error = (handle - view.grip) @ hand
        match self.phase:
            case "approach":
                goal = handle - STAND_OFF * hand[:, 2]
                if self.steps >= OPEN_STEPS and settled(view, goal, hand, 0.02, self.steps):
                    self.enter("reach")
                elif self.steps > TRAVEL_PATIENCE + 30:
                    self._again()
            case "reach":
                if float(np.hypot(error[0], error[1])) > ASTRAY:
                    self.enter("approach")
                elif error[2] < 0.008:
                    self.enter("grip")
                elif self.steps > CONTACT_PATIENCE:
                    self._again()
            case "grip":
                if self.steps >= CLOSE_STEPS:
                    self.enter("pull", fresh=True)
            case "pull":
                if share > OPENED:
                    self.enter("open", fresh=True)
                elif self._lost(view, error):
                    self.enter("loosen", fresh=True)
                elif self.steps > TRAVEL_PATIENCE:
                    self._again()
            case "loosen":
                if self.steps >= OPEN_STEPS:
                    self.enter("reach")
            case "open":
                if self.steps >= OPEN_STEPS:
                    self.enter("back")

    def _lost(self, view: View, error: Array) -> bool:
        thickness = 2 * float(view.box(self._joint)[2].min())
        return view.truth.gripper < EMPTY * thickness or float(np.linalg.norm(error)) > LOST

    def _again(self) -> None:
        self._attempts += 1
        self._shift = (0.0, 0.015, -0.015)[self._attempts % 3]
        self.enter("approach", fresh=True)


class Push(Machine):
    """APPROACH, PUSH, BACK: push a drawer shut at its handle with closed fingers."""

    def __init__(self, predicate: Predicate, view: View) -> None:
        super().__init__("approach")
        [self._joint] = joints_of(view.truth.layout, predicate.arguments[0])
        self._predicate = predicate

    def act(self, view: View) -> Aim | None:
        outward = view.axis(self._joint)
        side = np.cross(UP, outward)
        yaw_deg = float(np.rad2deg(np.arctan2(side[1], side[0])))
        hand = turned(from_above(yaw_deg), side, LEAN_DEG)
        centre, axes, halves = view.box(self._joint)
        front = centre + (np.abs(axes.T @ outward) @ halves) * outward
        goal = front + 0.05 * outward
        shut = view.truth.layout.joints[self._joint].holds("close", view.truth.joints[self._joint])
        error = front - view.grip
        error -= (error @ outward) * outward
        match self.phase:
            case "approach":
                if self.steps >= CLOSE_STEPS and settled(view, goal, hand, 0.02, self.steps):
                    self.enter("push", fresh=True)
                elif self.steps > 2 * TRAVEL_PATIENCE:
                    self.enter("approach", fresh=True)
            case "push":
                if float(np.linalg.norm(error)) > 0.04 or self.steps > TRAVEL_PATIENCE or shut:
                    self.enter("back", fresh=True)
        self.steps += 1
        if self.phase == "approach":
            return Aim(transit(view, view.others(), goal), hand, CLOSE)
        if self.phase == "push":
            return Aim(view.grip + error - 0.05 * outward, hand, CLOSE)
        back = front + 0.08 * outward
        if self.steps > 15 or miss(view, back) < 0.02:
            return None
        return Aim(back, hand, CLOSE)
