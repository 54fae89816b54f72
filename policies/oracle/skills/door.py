"""Push a door that turns about a hinge until it is shut: with closed fingers, over its upper edge."""

import numpy as np
from numpy.typing import NDArray

from policies.oracle.goals import joints_of
from policies.oracle.hand import from_above
from policies.oracle.servo import CLOSE
from policies.oracle.skills.base import CLOSE_STEPS, TRAVEL_PATIENCE, Aim, Machine, settled, transit
from policies.oracle.view import UP, View
from policies.truth import Predicate

Array = NDArray[np.float64]

BELOW_EDGE = 0.022  # of the grip below the door's upper edge: the palm passes over it
STAND_OFF = 0.05
ARM = 0.75  # share of the door's breadth at which it is pushed: inside of the handle


class Shut(Machine):
    """APPROACH, PUSH, UP; it starts again where the hand has left the door."""

    def __init__(self, predicate: Predicate, view: View) -> None:
        super().__init__("approach")
        [self._joint] = joints_of(view.truth.layout, predicate.arguments[0])

    def act(self, view: View) -> Aim | None:
        joint = view.truth.layout.joints[self._joint]
        face, closing, along = self._face(view)
        hand = from_above(float(np.rad2deg(np.arctan2(along[1], along[0]))))
        goal = face - STAND_OFF * closing
        shut = joint.holds("close", view.truth.joints[self._joint])
        error = view.grip - face
        match self.phase:
            case "approach":
                if self.steps >= CLOSE_STEPS and settled(view, goal, hand, 0.025, self.steps):
                    self.enter("push", fresh=True)
            case "push":
                astray = abs(float(error @ along)) > 0.07 or self.steps > 2 * TRAVEL_PATIENCE
                if shut or astray:
                    self.enter("up", fresh=True)
            case "up":
                if self.steps > 12:
                    return None
        self.steps += 1
        match self.phase:
            case "approach":
                return Aim(transit(view, view.others(), goal), hand, CLOSE)
            case "push":
                return Aim(face + 0.04 * closing, hand, CLOSE)
            case _:
                return Aim(view.grip + 0.04 * UP, hand, CLOSE)

    def _face(self, view: View) -> tuple[Array, Array, Array]:
        """The point to push, the way it moves as the door shuts, and the direction from the hinge to it."""
        joint = view.truth.layout.joints[self._joint]
        points = view.body_points([joint.body])
        anchor, axis = view.anchor(self._joint), view.axis(self._joint)
        arm = (points - anchor) * np.array([1.0, 1.0, 0.0])
        far = arm[np.argmax(np.linalg.norm(arm, axis=1))]
        along = far / np.linalg.norm(far)
        closing = -np.cross(axis, along)  # `axis` opens
        here = points[np.abs(arm @ along - ARM * np.linalg.norm(far)) < 0.03]
        outside = float(((here - anchor) @ -closing).max())
        face = anchor + ARM * np.linalg.norm(far) * along - outside * closing
        face[2] = float(points[:, 2].max()) - BELOW_EDGE
        return face, closing, along
