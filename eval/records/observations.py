"""Requests in a file: observations with episode and call, in one compressed .npz without pickles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.records.arrays import Array, read_arrays
from eval.records.schema import SUITE
from policies.base import ACTION_DIM, EpisodeKey, Observation, Request
from policies.files import real_path
from policies.text import shell_command

T = TypeVar("T")


def spread(items: Sequence[T], count: int, phase: float = 0.0) -> list[T]:
    """Pick `count` items at equal distances; phase 0 takes the first item, almost 1 the last."""
    return [items[int((i + phase) * len(items) / count)] for i in range(count)]


ACTIONS = "actions_HJ"  # beside them, where `eval.records.recording` wrote the file
STATE_DIM = 8  # of `Observation.state`
MOST_REQUESTS = 100_000
MOST_HORIZON = 1000
MOST_TEXT = 40_000  # bytes of a text, four a character
SIDES = (4, 4096)  # pixels
MOST_ASPECT = 8  # of height and width; a resize keeps it, and a network's image has 224 pixels a side
IMAGES = "images/"  # before each camera's name
FIELDS = ("state", "instruction", "suite", "task_id", "episode", "seed", "call")
WAY_OUT = f"collect some with `{shell_command('optim.calibrate', 'calibrate.keep=FILE.npz')}`"


def save_requests(path: Path, requests: Sequence[Request]) -> None:
    """Write requests to `path`, under exactly this name; `privileged` is not kept.

    Raises ValueError where there are none, or they differ in cameras or in image sizes.
    """
    shapes = {
        tuple(sorted((name, image.shape) for name, image in request.observation.images.items()))
        for request in requests
    }
    if len(shapes) != 1:
        raise ValueError(f"saved requests must have the same cameras and image sizes, got {sorted(shapes)}")
    observations = [request.observation for request in requests]
    keys = [request.episode for request in requests]
    arrays: dict[str, NDArray[np.generic]] = {
        IMAGES + name: np.stack([observation.images[name] for observation in observations])
        for name in sorted(observations[0].images)
    }
    arrays["state"] = np.stack([observation.state for observation in observations])
    arrays["instruction"] = np.array([observation.instruction for observation in observations])
    for name in ("suite", "task_id", "episode", "seed"):
        arrays[name] = np.array([getattr(key, name) for key in keys])
    arrays["call"] = np.array([request.call for request in requests])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # given a name, NumPy would append .npz to it
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes them for allow_pickle


def load_requests(path: Path) -> list[Request]:
    """Read what `save_requests` wrote, equal to the bit.

    Raises FileNotFoundError for no file, ValueError for a file of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no observations {path} (looked at {real_path(path)}); {WAY_OUT}")
    return requests_of(path, read_observations(real_path(path)))  # its user may name a link


def read_observations(path: Path) -> dict[str, Array]:
    """Read the arrays of a file of requests, and `ACTIONS` where it has them; ValueError for another kind."""
    try:
        arrays = read_arrays(path, _what_is_wrong)
    except ValueError as error:
        raise _wrong(path, str(error)) from error
    cameras = [name for name in arrays if name.startswith(IMAGES)]
    missing = [name for name in FIELDS if name not in arrays] + ([] if cameras else [IMAGES + "CAMERA"])
    if missing:
        raise _wrong(path, f"it lacks {', '.join(missing)} and has {', '.join(sorted(arrays))}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise _wrong(path, f"its arrays differ in length: {lengths}")
    for name in ("state", ACTIONS):
        if name in arrays and not np.isfinite(arrays[name]).all():
            raise _wrong(path, f"{name} must be finite")
    return arrays


def requests_of(path: Path, arrays: Mapping[str, Array]) -> list[Request]:
    """Take the requests out of what `read_observations` read from `path`."""
    images = {name.removeprefix(IMAGES): arrays[name] for name in arrays if name.startswith(IMAGES)}
    return [
        Request(
            Observation(
                {name: pictures[i] for name, pictures in images.items()},
                arrays["state"][i],
                _text(path, arrays, "instruction", i),
            ),
            EpisodeKey(
                _text(path, arrays, "suite", i),
                *(_number(path, arrays, name, i) for name in ("task_id", "episode", "seed")),
            ),
            _number(path, arrays, "call", i),
        )
        for i in range(len(arrays["call"]))
    ]


def require_cameras(requests: Sequence[Request], cameras: Sequence[str]) -> None:
    """Raise ValueError where observations lack a camera that a policy wants."""
    for request in requests:
        images = request.observation.images
        if missing := [name for name in cameras if name not in images]:
            raise ValueError(
                f"the observations must have {', '.join(missing)}, which the policy wants, and have "
                f"{', '.join(images)}; collect some with this policy"
            )


def _what_is_wrong(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> str | None:
    """Say what an array must be; None where it is."""
    if not shape or not 1 <= shape[0] <= MOST_REQUESTS:
        return f"must hold 1 to {MOST_REQUESTS} requests"
    rest = shape[1:]
    if name.startswith(IMAGES):
        is_image = dtype == np.uint8 and len(rest) == 3 and rest[2] == 3
        if not is_image or not SIDES[0] <= min(rest[:2]) <= max(rest[:2]) <= SIDES[1]:
            return f"must be uint8 (number, height, width, 3), {SIDES[0]} to {SIDES[1]} pixels a side"
        if max(rest[:2]) > MOST_ASPECT * min(rest[:2]):
            return f"must be at most {MOST_ASPECT} times as long as wide"
        return None
    if name == "state":
        return (
            None if dtype == np.float64 and rest == (STATE_DIM,) else f"must be float64 (number, {STATE_DIM})"
        )
    if name == ACTIONS:
        is_chunk = len(rest) == 2 and 1 <= rest[0] <= MOST_HORIZON and rest[1] == ACTION_DIM
        return None if dtype == np.float64 and is_chunk else f"must be float64 (number, H, {ACTION_DIM})"
    if name in ("instruction", "suite"):
        is_text = dtype.kind == "U" and rest == () and dtype.itemsize <= MOST_TEXT
        return None if is_text else "must be text (number,)"
    if name in FIELDS:
        return None if dtype.kind in "iu" and rest == () else "must be whole numbers (number,)"
    return "is no array of saved requests"


def _text(path: Path, arrays: Mapping[str, Array], name: str, i: int) -> str:
    try:
        text = str(arrays[name][i])
        text.encode()
    except ValueError as error:  # no characters, or half of one
        raise _wrong(path, f"{name} {i} is no text: {error}") from error
    if name == "suite" and not SUITE.fullmatch(text):
        raise _wrong(path, f"suite {i} must be letters, digits and _.- alone, got {text!r:.100}")
    return text


def _number(path: Path, arrays: Mapping[str, Array], name: str, i: int) -> int:
    number = int(arrays[name][i])
    if number < 0:
        raise _wrong(path, f"{name} {i} must be >= 0, got {number}")
    return number


def _wrong(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} does not hold saved requests: {why}; {WAY_OUT}")
