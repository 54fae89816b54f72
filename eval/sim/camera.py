"""LIBERO-Plus's camera viewpoints: where `agentview` stands and looks, as its code moves it.

Only this camera moves; its field of view stays. Every number is rounded to four decimals after each step, and
a step is done even where its angle is 0: pictures of LIBERO-Plus come from a rounded camera in every
dimension, less than a pixel beside LIBERO's.

Source: LIBERO-Plus 0.1.5, `_setup_camera` of libero/envs/problems, to the bit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CENTRE = np.array([0.0, 0.0, 0.8])  # in every scene, also where the camera stands below it
DECIMALS = 4
Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A position (3,) in metres and a quaternion (4,) w, x, y, z, in the world frame."""


@dataclass(frozen=True)
class View:
    """A viewpoint, in degrees and per cent; the default is LIBERO's own.

    Attributes:
        azimuth: turns the camera about the world's vertical axis.
        elevation: lifts it about `CENTRE`.
        distance: from `CENTRE`.
        yaw, pitch: turn it where it stands.
    """

    azimuth: int = 0
    elevation: int = 0
    distance: int = 100
    yaw: int = 0
    pitch: int = 0

    def move(self, position: NDArray[np.float64], quat: NDArray[np.float64]) -> Pose:
        """Move a camera from its own pose to this viewpoint; the quaternion is not of length 1."""
        if self.elevation:
            lift = _rotation("y", -self.elevation)
            position = _round(CENTRE + lift.apply(position - CENTRE))
            quat = _turn(lift, quat)
        around = _rotation("z", self.azimuth)
        position, quat = _round(around.apply(position)), _turn(around, quat)
        if self.distance != 100:
            position = _round(CENTRE + self.distance / 100 * (position - CENTRE))
        if self.yaw:
            quat = _turn(_rotation("z", self.yaw), quat)
        if self.pitch:
            quat = _turn(_rotation("y", -self.pitch), quat)
        return position, quat


def _rotation(axis: str, degrees: float) -> Any:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler(axis, degrees, degrees=True)


def _turn(rotation: Any, quat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a quaternion in the world frame."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = (rotation * Rotation.from_quat(np.roll(quat, -1))).as_quat()
    return _round(np.array([w, x, y, z]))


def _round(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.round(values, DECIMALS)
