"""From where the hand should be to an action: a proportional controller with a small integral term."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policies.base import ACTION_DIM

# LIBERO's OSC_POSE controller (robosuite osc_pose.json): what an action of 1.0 asks for
METRES_PER_ACTION = 0.05
RADIANS_PER_ACTION = 0.5
OPEN, CLOSE = -1.0, 1.0


@dataclass(frozen=True)
class Gains:
    """How much of an error one step asks for."""

    gain: float  # share of the position error
    turn_gain: float  # share of the orientation error
    integral_gain: float  # per step; against a steady error of 1 to 2 cm near the reach limit
    integral_limit: float  # bound of the integral term on each axis, metres
    integral_range: float  # beyond this an axis is travelling and its integral sleeps: no overshoot


@dataclass
class Servo:
    gains: Gains
    integral: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def forget(self) -> None:
        """Drop the integral: what it has learnt against an obstacle is wrong in free space."""
        self.integral[:] = 0.0

    def act(
        self, error: NDArray[np.float64], turn: NDArray[np.float64], gripper: float
    ) -> NDArray[np.float64]:
        """Return an action (7,) for a position error (3,) and a turn (3,), an axis-angle, in the world."""
        gains = self.gains
        near = np.abs(error) < gains.integral_range
        self.integral = np.clip(
            self.integral + np.where(near, gains.integral_gain * error, 0.0),
            -gains.integral_limit,
            gains.integral_limit,
        )
        action = np.empty(ACTION_DIM)
        action[:3] = (gains.gain * error + self.integral) / METRES_PER_ACTION
        action[3:6] = gains.turn_gain * turn / RADIANS_PER_ACTION
        action[6] = gripper
        return np.clip(action, -1.0, 1.0)
