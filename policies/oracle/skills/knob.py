"""Turn a stove's knob by its ridge."""

import numpy as np
from numpy.typing import NDArray

from policies.oracle.goals import joints_of
from policies.oracle.hand import from_above, turned
from policies.oracle.servo import CLOSE, OPEN
from policies.oracle.skills.base import (
    ALIGNED,
    ASTRAY,
    CLOSE_STEPS,
    CONTACT_PATIENCE,
    OPEN_STEPS,
    TRAVEL_PATIENCE,
    Aim,
    Machine,
    settled,
    transit,
)
from policies.oracle.view import UP, View, plane
from policies.truth import Predicate

Array = NDArray[np.float64]

HOVER = 0.07
BELOW_TOP = 0.016  # of the grip below the ridge's top
TURN_DEG = 75.0  # at a time; then it grips anew
AHEAD_DEG = 35.0  # of the hand's aim before the hand


class Turn(Machine):
    """APPROACH, DESCEND, GRIP, TURN, OPEN, UP; it grips anew while the knob is not where it should be."""

    def __init__(self, predicate: Predicate, view: View) -> None:
        super().__init__("approach")
        [self._joint] = joints_of(view.truth.layout, predicate.arguments[0])
        self._predicate = predicate
        self._start = np.eye(3)
        self._turned = 0.0

    def act(self, view: View) -> Aim | None:
        grip, hand = self._ridge(view)
        above = grip + HOVER * UP
        sign = 1.0 if self._predicate.name == "turnon" else -1.0
        axis = sign * view.axis(self._joint)
        done = view.truth.layout.joints[self._joint].holds(
            self._predicate.name, view.truth.joints[self._joint] - 0.1 * sign
        )
        match self.phase:
            case "approach":
                if self.steps >= OPEN_STEPS and settled(view, above, hand, 0.02, self.steps):
                    self.enter("descend")
                elif self.steps > TRAVEL_PATIENCE + 30:
                    self.enter("approach", fresh=True)
            case "descend":
                if plane(grip - view.grip) > ASTRAY:
                    self.enter("approach")
                elif view.grip[2] < grip[2] + 0.008 or self.steps > CONTACT_PATIENCE:
                    self.enter("grip")
            case "grip":
                if self.steps >= CLOSE_STEPS:
                    self._start = view.hand.copy()
                    self.enter("turn", fresh=True)
            case "turn":
                if done or self.steps > CONTACT_PATIENCE or plane(grip - view.grip) > ASTRAY + ALIGNED:
                    self.enter("open", fresh=True)
            case "open":
                if self.steps >= OPEN_STEPS:
                    self.enter("up")
            case "up":
                if view.grip[2] > above[2] - 0.01 or self.steps > CONTACT_PATIENCE:
                    return None
        self.steps += 1
        match self.phase:
            case "approach":
                return Aim(transit(view, view.others(), above), hand, OPEN)
            case "descend":
                return Aim(grip, hand, OPEN)
            case "grip":
                return Aim(grip, hand, CLOSE)
            case "turn":
                share = min(1.0, self.steps / 8)
                return Aim(grip, turned(self._start, axis, share * TURN_DEG), CLOSE)
            case "open":
                return Aim(view.grip, view.hand, OPEN)
            case _:
                return Aim(np.append(view.grip[:2], above[2] + 0.02), view.hand, OPEN)

    def _ridge(self, view: View) -> tuple[Array, Array]:
        """Where and how to take the ridge: across its thin side, over the axis of the knob."""
        centre, axes, halves = view.box(self._joint)
        flat = np.abs(axes[2]) < 0.5
        thin = int(np.argmin(np.where(flat, halves, np.inf)))
        yaw_deg = float(np.rad2deg(np.arctan2(axes[1, thin], axes[0, thin])))
        anchor = view.anchor(self._joint)
        top = centre[2] + float(np.abs(axes[2]) @ halves)
        return np.array([anchor[0], anchor[1], top - BELOW_TOP]), from_above(yaw_deg)
