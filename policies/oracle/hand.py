"""The Panda's hand: orientations, and what it would touch. Its frame is the grip's (`policies.truth`)."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

DOWN = np.array([0.0, 0.0, -1.0])
# metres, from the grip site; the palm's mesh is 0.104 x 0.032 and the opened fingers are 77 mm apart
PALM_HALF = (0.106, 0.035)
PALM_BEHIND = 0.033
FINGER_INSIDE, FINGER_OUTSIDE, FINGER_HALF, FINGER_TIP = 0.034, 0.062, 0.013, 0.010
# the closing direction's angle in the world's plane: the hand starts at 90 degrees, and turning far the other
# way ends near the limit of the last joint
LEAST_YAW_DEG = 50.0


def orient(closing: Array, approach: Array) -> Array:
    """The orientation (3, 3) of a hand that closes along one vector and points along another."""
    z = approach / np.linalg.norm(approach)
    x = closing - (closing @ z) * z
    x = x / np.linalg.norm(x)
    return np.column_stack([x, np.cross(z, x), z])


def from_above(yaw_deg: float, tilt_deg: float = 0.0) -> Array:
    """A hand that closes along a direction in the plane, turned about it by `tilt_deg` away from straight
    down; of the two ways to close along a line the one that the last joint likes."""
    yaw = np.deg2rad(LEAST_YAW_DEG + (yaw_deg - LEAST_YAW_DEG) % 180.0)
    closing = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return turned(orient(closing, DOWN), closing, tilt_deg)


def turned(orientation: Array, axis: Array, degrees: float) -> Array:
    """An orientation after a turn about an axis of the world."""
    return Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix() @ orientation


def towards(direction: Array, below_deg: float) -> Array:
    """A hand that points along a horizontal direction, but `below_deg` downwards, and closes up and down."""
    yaw_deg = float(np.rad2deg(np.arctan2(direction[1], direction[0])))
    hand = from_above(yaw_deg)
    return turned(hand, np.cross(DOWN, direction), 90.0 - below_deg)


def touches(points: Array, grip: Array, hand: Array, travel: float) -> int:
    """How many points the opened hand would touch at `grip` or on the last `travel` metres of the way there,
    along the direction in which it points."""
    local = (points - grip) @ hand
    x, y, z = np.abs(local[:, 0]), np.abs(local[:, 1]), local[:, 2]
    palm = (x < PALM_HALF[0]) & (y < PALM_HALF[1]) & (z < -PALM_BEHIND) & (z > -PALM_BEHIND - travel - 0.06)
    fingers = (x > FINGER_INSIDE) & (x < FINGER_OUTSIDE) & (y < FINGER_HALF) & (z < FINGER_TIP)
    fingers &= z > -travel - PALM_BEHIND
    return int((palm | fingers).sum())


def touches_palm(points: Array, grip: Array, hand: Array) -> int:
    """How many points of what the hand holds would touch the palm."""
    x, y, z = ((points - grip) @ hand).T
    return int(((np.abs(x) < PALM_HALF[0]) & (np.abs(y) < PALM_HALF[1]) & (z < -PALM_BEHIND)).sum())
