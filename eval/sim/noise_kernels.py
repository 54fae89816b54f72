"""The loops of the sensor noise that NumPy and SciPy are slow at, compiled by numba at their first use.

Each adds and multiplies in the order of the code that it stands for, so that the bytes are the same.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

QUANTUM = 257  # a byte in 16 bits: 255 becomes 65535


@numba.njit
def trail(
    frame_HWC: NDArray[np.uint8], weights: NDArray[np.float64], dx: NDArray[np.int64], dy: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Sum pixels at the offsets `dx`, `dy`, weighted; the frame's edge goes on outside of it."""
    height, width, colours = frame_HWC.shape
    out = np.empty_like(frame_HWC)
    sums = np.empty((width, colours))
    for y in range(height):
        sums[:] = 0.0
        for j in range(len(weights)):
            row = frame_HWC[min(max(y + dy[j], 0), height - 1)]
            for x in range(width):
                column = min(max(x + dx[j], 0), width - 1)
                for c in range(colours):
                    sums[x, c] += weights[j] * (QUANTUM * row[column, c])
        for x in range(width):
            for c in range(colours):
                out[y, x, c] = math.floor(sums[x, c] + 0.5) // QUANTUM
    return out


@numba.njit
def scatter(frame_HWC: NDArray[np.uint8], farthest: int, moves: NDArray[np.int64]) -> None:
    """Copy pixels from `moves` (rounds, pixels, 2 for x and y) away, in place, from the last to the first.

    Pixels nearer to the edge than `farthest` stay. The released code means to swap two pixels, but both are
    views of one array.
    """
    height, width, _ = frame_HWC.shape
    for round_ in range(len(moves)):
        i = 0
        for y in range(height - farthest, farthest, -1):
            for x in range(width - farthest, farthest, -1):
                dx, dy = moves[round_, i]
                frame_HWC[y, x] = frame_HWC[y + dy, x + dx]
                i += 1


@numba.njit
def add_zooms(values_HWC: NDArray[np.float32], zooms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sum the frame's centre enlarged by each zoom, as `scipy.ndimage.zoom` of order 1 interpolates."""
    side, _, colours = values_HWC.shape
    total = np.zeros_like(values_HWC)
    above, below = np.empty((side, colours)), np.empty((side, colours))
    for zoom in zooms:
        crop = math.ceil(side / zoom)
        top = (side - crop) // 2
        enlarged = int(np.round(crop * zoom))
        skip = (enlarged - side) // 2
        scale = (crop - 1) / (enlarged - 1)
        for y in range(side):
            place = (y + skip) * scale
            if place > crop - 1:  # beyond the last pixel there is 0
                continue
            first = math.floor(place)
            second = first + 1 if first + 1 < crop else crop - 2
            upper = 1.0 - (place - math.floor(place))
            lower = 1.0 - upper
            for x in range(crop):
                for c in range(colours):
                    above[x, c] = values_HWC[top + first, top + x, c] * upper
                    below[x, c] = values_HWC[top + second, top + x, c] * lower
            for x in range(side):
                place = (x + skip) * scale
                if place > crop - 1:
                    continue
                left = math.floor(place)
                right = left + 1 if left + 1 < crop else crop - 2
                near = 1.0 - (place - math.floor(place))
                far = 1.0 - near
                for c in range(colours):
                    value = above[left, c] * near
                    value += above[right, c] * far
                    value += below[left, c] * near
                    value += below[right, c] * far
                    total[y, x, c] += np.float32(value)
    return total
