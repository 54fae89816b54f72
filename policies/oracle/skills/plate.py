"""Push something flat over the table to a place: with closed fingers, from behind."""

import numpy as np
from numpy.typing import NDArray

from policies.oracle.hand import from_above, turned
from policies.oracle.servo import CLOSE
from policies.oracle.skills.base import CLOSE_STEPS, TRAVEL_PATIENCE, Aim, Machine, miss, settled, transit
from policies.oracle.view import UP, View, plane
from policies.truth import Predicate

Array = NDArray[np.float64]

OVER_TABLE = 0.014
BEHIND = 0.022  # metres from the rim where the push begins
AHEAD = 0.03  # of the aim before the hand: one slow step
LEAN_DEG = 35.0


class Slide(Machine):
    """APPROACH, DESCEND, PUSH, UP: it starts again where the thing slides off to a side."""

    def __init__(self, predicate: Predicate) -> None:
        super().__init__("approach")
        self.thing, self._target = predicate.arguments
        self._lean = LEAN_DEG

    def act(self, view: View) -> Aim | None:
        position = view.pose(self.thing).position
        way = view.pose(self._target).position - position
        distance = plane(way)
        direction = np.append(way[:2] / max(distance, 1e-6), 0.0)
        side = np.cross(UP, direction)
        points = view.points(self.thing)
        radius = float(((position - points) @ direction).max())
        bottom = float(points[:, 2].min())
        start = position - (radius + BEHIND) * direction
        start[2] = bottom + OVER_TABLE
        hand = turned(from_above(float(np.rad2deg(np.arctan2(side[1], side[0])))), side, self._lean)
        above = start - 0.08 * hand[:, 2]
        off = float((view.grip - position) @ side)
        match self.phase:
            case "approach":
                if self.steps >= CLOSE_STEPS and settled(view, above, hand, 0.02, self.steps):
                    self.enter("descend")
                elif self.steps > TRAVEL_PATIENCE + 30:
                    self._lean = -self._lean
                    self.enter("approach", fresh=True)
            case "descend":
                if miss(view, start) < 0.015:
                    self.enter("push", fresh=True)
                elif self.steps > 25:
                    if plane(start - view.grip) < 0.03:
                        self.enter("push", fresh=True)
                    else:
                        self._lean = -self._lean
                        self.enter("up", fresh=True)
            case "push":
                ahead = float((view.grip - position) @ direction)
                if distance < 0.012 or abs(off) > 0.04 or ahead > -0.03 or self.steps > 2 * TRAVEL_PATIENCE:
                    self.enter("up", fresh=True)
            case "up":
                if self.steps > 15:
                    return None
        self.steps += 1
        match self.phase:
            case "approach":
                return Aim(transit(view, view.others(), above), hand, CLOSE)
            case "descend":
                return Aim(start, hand, CLOSE)
            case "push":
                aim = view.grip + AHEAD * direction - 1.2 * off * side
                aim[2] = bottom + OVER_TABLE
                return Aim(aim, hand, CLOSE)
            case _:
                return Aim(view.grip - 0.04 * hand[:, 2], hand, CLOSE)
