"""The sensor noise is the released code's to the byte, and cheap.

`noise_sha256.json` holds, for odd noises, the hash of what the released code made of `frame_256.png` with
`RandomState(1000 + n)`, and the number that its generator gave next.
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from eval.sim.noise import apply

DATA = Path(__file__).with_name("data")
RELEASED = json.loads((DATA / "noise_sha256.json").read_text())
MOST_MS = 60  # a frame, on one core


@pytest.fixture(scope="module")
def frame() -> NDArray[np.uint8]:
    return np.asarray(Image.open(DATA / "frame_256.png").convert("RGB"))


@pytest.mark.parametrize("n", [int(n) for n in RELEASED])
def test_a_noise_is_the_released_codes_to_the_byte_and_leaves_its_generator(
    frame: NDArray[np.uint8], n: int
) -> None:
    rng = np.random.RandomState(1000 + n)
    noisy = apply(frame, n, rng)
    sha256, following = RELEASED[str(n)]
    assert hashlib.sha256(noisy.tobytes()).hexdigest() == sha256
    assert rng.randint(0, 2**31 - 1) == following


@pytest.mark.parametrize(
    ("n", "row", "column", "colour"),
    [
        (1, 10, 200, (198, 181, 163)),
        (1, 128, 128, (157, 143, 130)),
        (12, 128, 128, (158, 144, 131)),
        (22, 128, 128, (160, 147, 134)),
        (36, 128, 128, (77, 73, 70)),
        (45, 128, 128, (157, 144, 131)),
    ],
)
def test_pixels_of_the_released_code(
    frame: NDArray[np.uint8], n: int, row: int, column: int, colour: tuple[int, int, int]
) -> None:
    assert tuple(apply(frame, n, np.random.RandomState(0))[row, column]) == colour


def test_every_noise_is_another_and_draws_from_its_own_generator_alone(frame: NDArray[np.uint8]) -> None:
    before, kept = np.random.get_state()[1].copy(), frame.copy()
    noisy = {
        hashlib.sha256(apply(frame, n, np.random.RandomState(3)).tobytes()).digest() for n in range(1, 51)
    }
    assert len(noisy) == 50
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal(frame, kept)


@pytest.mark.parametrize("n", [10, 20, 27, 31, 43, 50])  # the slowest of each kind
def test_a_frame_takes_at_most_sixty_milliseconds_of_a_core(frame: NDArray[np.uint8], n: int) -> None:
    times_ms = []
    for _ in range(4):  # the first compiles
        start_s = time.thread_time()
        apply(frame, n, np.random.RandomState(0))
        times_ms.append((time.thread_time() - start_s) * 1e3)
    assert min(times_ms) < MOST_MS


@pytest.mark.parametrize(
    ("shape", "kind", "n", "words"),
    [
        ((256, 256, 3), np.uint8, 0, "a noise is 1 to 50, got 0"),
        ((256, 256, 3), np.uint8, 51, "a noise is 1 to 50, got 51"),
        ((256, 256), np.uint8, 1, r"a frame is uint8 \(H, W, 3\), got uint8 \(256, 256\)"),
        ((256, 256, 3), np.float64, 1, "got float64"),
        ((200, 256, 3), np.uint8, 25, "a zoom's frame must be square, got 200 x 256"),
        ((300, 256, 3), np.uint8, 33, "a fog's frame must be at most 256 pixels a side, got 300 x 256"),
    ],
)
def test_what_the_released_code_cannot_do_is_refused(
    shape: tuple[int, ...], kind: type, n: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        apply(np.zeros(shape, kind), n, np.random.RandomState(0))
