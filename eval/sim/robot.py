"""LIBERO-Plus's initial poses of the arm: 500, drawn around LIBERO's own.

Source: LIBERO-Plus 0.1.5, libero/envs/robots/new_init.py; all 500 are equal to its table.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

HOME = np.array([0, -1.61037389e-01, 0, -2.44459747e00, 0, 2.22675220e00, np.pi / 4])
NUM_POSES = 500


@cache
def _directions() -> NDArray[np.float64]:
    draws = np.random.RandomState(42).randn(NUM_POSES, len(HOME))
    return draws / np.linalg.norm(draws, axis=1, keepdims=True)


def arm_pose(number: int) -> NDArray[np.float64]:
    """The joints (7,) in radians of pose 1 to 500: 0.1 from home for the first hundred, 0.5 for the last.

    0 is home. Raises ValueError for another number.
    """
    if not 0 <= number <= NUM_POSES:
        raise ValueError(f"a pose of the arm is 0 to {NUM_POSES}, got {number}")
    if number == 0:
        return HOME.copy()
    distance = 0.1 * np.ceil(number / 100)
    return np.round(HOME + distance * _directions()[number - 1], 8)
