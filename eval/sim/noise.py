"""LIBERO-Plus's sensor noise: five kinds in ten strengths, 1 to 50, to the byte of its released code.

H height, W width, C 3 colours. A noise works on the raw frame, before it is rotated and resized.

Sources: LIBERO-Plus (libero/libero/envs/env_wrapper.py, as of 2025-11-07, which uses the whole frame), whose
formulas are ImageNet-C's (Hendrycks and Dietterich 2019) and, for motion, ImageMagick 6's (`MotionBlurImage`
with 16 bits a channel). SciPy does what it does fast; `eval.sim.noise_kernels` is for the rest.
"""

import math

import numpy as np
from numpy.typing import NDArray

NUM_NOISES = 50
STRENGTHS = 10  # of each kind

# of strength 1 to 10
MOTION = (  # radius and sigma in pixels
    *((5, 2), (8, 3), (10, 4), (12, 5), (15, 6)),
    *((18, 8), (20, 10), (25, 12), (30, 15), (35, 20)),
)
ZOOM = (  # the zooms stop before, and their step
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
FOG = (  # amount, and how fast its roughness decays
    *((0.5, 3.0), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
GLASS = (  # sigma, farthest move and rounds
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)
MOTION_DEGREES = 45  # at most, either way
FOG_SIZE = 256  # the released code has no fog for larger frames
FOG_ROUGHNESS = 100.0  # of the first halving


def apply(frame_HWC: NDArray[np.uint8], n: int, rng: np.random.RandomState) -> NDArray[np.uint8]:
    """Put noise `n` over a frame; gaussian and zoom draw nothing from `rng`.

    Raises:
        ValueError: `n` is not 1 to 50, the frame is no uint8 image of three colours, a zoom's is not square,
            or a fog's has a side above 256 pixels.
    """
    if not 1 <= n <= NUM_NOISES:
        raise ValueError(f"a noise is 1 to {NUM_NOISES}, got {n}")
    if frame_HWC.dtype != np.uint8 or frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3:
        raise ValueError(f"a frame is uint8 (H, W, 3), got {frame_HWC.dtype} {frame_HWC.shape}")
    kind, strength = divmod(n - 1, STRENGTHS)
    return (_motion, _gaussian, _zoom, _fog, _glass)[kind](frame_HWC, strength, rng)


def _motion(frame_HWC: NDArray[np.uint8], strength: int, rng: np.random.RandomState) -> NDArray[np.uint8]:
    """Trail each pixel along a random direction, in 16 bits a colour."""
    from eval.sim.noise_kernels import trail

    radius, sigma = MOTION[strength]
    angle = math.radians(rng.uniform(-MOTION_DEGREES, MOTION_DEGREES))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2.0 * sigma * sigma))
    dx = np.ceil(steps * math.cos(angle) - 0.5).astype(np.int64)
    dy = np.ceil(steps * math.sin(angle) - 0.5).astype(np.int64)
    return trail(frame_HWC, weights / sum(weights.tolist()), dx, dy)


def _gaussian(frame_HWC: NDArray[np.uint8], strength: int, rng: np.random.RandomState) -> NDArray[np.uint8]:
    return _bytes(_blur(frame_HWC / 255.0, strength + 1))


def _zoom(frame_HWC: NDArray[np.uint8], strength: int, rng: np.random.RandomState) -> NDArray[np.uint8]:
    """Average the frame with its centre, ever more enlarged, in float32."""
    from eval.sim.noise_kernels import add_zooms

    height, width, _ = frame_HWC.shape
    if height != width:
        raise ValueError(f"a zoom's frame must be square, got {height} x {width}")
    stop, step = ZOOM[strength]
    zooms = np.arange(1, stop, step)
    values = (frame_HWC / 255.0).astype(np.float32)
    return _bytes((values + add_zooms(values, zooms)) / (len(zooms) + 1))


def _fog(frame_HWC: NDArray[np.uint8], strength: int, rng: np.random.RandomState) -> NDArray[np.uint8]:
    height, width, _ = frame_HWC.shape
    if max(height, width) > FOG_SIZE:
        raise ValueError(f"a fog's frame must be at most {FOG_SIZE} pixels a side, got {height} x {width}")
    amount, decay = FOG[strength]
    values = frame_HWC / 255.0
    brightest = values.max()
    values += amount * _plasma(rng, decay)[:height, :width, np.newaxis]
    return _bytes(values * brightest / (brightest + amount))


def _glass(frame_HWC: NDArray[np.uint8], strength: int, rng: np.random.RandomState) -> NDArray[np.uint8]:
    """Blur, copy each pixel from a random near one, again and again in place, and blur."""
    from eval.sim.noise_kernels import scatter

    sigma, farthest, rounds = GLASS[strength]
    blurred = (_blur(frame_HWC / 255.0, sigma) * 255).astype(np.uint8)
    height, width, _ = frame_HWC.shape
    pixels = max(height - 2 * farthest, 0) * max(width - 2 * farthest, 0)
    moves = rng.randint(-farthest, farthest, (rounds, pixels, 2))
    scatter(blurred, farthest, moves)
    return _bytes(_blur(blurred / 255.0, sigma))


def _blur(values_HWC: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    blurred: NDArray[np.float64] = gaussian_filter(
        values_HWC, (sigma, sigma, 0), mode="nearest", truncate=4.0
    )
    return blurred


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Cut values of 0 to 1 down to bytes, as the released code does."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _plasma(rng: np.random.RandomState, decay: float) -> NDArray[np.float64]:
    """Draw a cloud (256, 256) from 0 to 1: diamonds and squares on a torus, ever half as large."""
    cloud = np.zeros((FOG_SIZE, FOG_SIZE))
    roughness, step = FOG_ROUGHNESS, FOG_SIZE

    def mean_of_four(total: NDArray[np.float64]) -> NDArray[np.float64]:
        return total / 4 + roughness * rng.uniform(-roughness, roughness, total.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        cloud[half::step, half::step] = mean_of_four(pairs + np.roll(pairs, -1, axis=1))
        centres = cloud[half::step, half::step]
        rows = (centres + np.roll(centres, 1, axis=0)) + (corners + np.roll(corners, -1, axis=1))
        cloud[::step, half::step] = mean_of_four(rows)
        columns = (centres + np.roll(centres, 1, axis=1)) + (corners + np.roll(corners, -1, axis=0))
        cloud[half::step, ::step] = mean_of_four(columns)
        step, roughness = half, roughness / decay
    cloud -= cloud.min()
    return cloud / cloud.max()
