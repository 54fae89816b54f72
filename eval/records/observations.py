"""Requests in a file: observations with episode and call, as one compressed .npz without pickles."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policies.base import EpisodeKey, Observation, Request

T = TypeVar("T")


def spread(items: Sequence[T], count: int, phase: float = 0.0) -> list[T]:
    """Pick `count` items at equal distances; phase 0 takes the first item, almost 1 the last."""
    return [items[int((i + phase) * len(items) / count)] for i in range(count)]


IMAGES = "images/"  # before each camera's name
FIELDS = ("state", "instruction", "suite", "task_id", "episode", "seed", "call")
WAY_OUT = "collect some with `python -m optim.calibrate calibrate.keep=FILE.npz`"


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
        raise FileNotFoundError(f"no observations {path} (looked at {path.resolve()}); {WAY_OUT}")
    arrays = _read(path)
    images = {name.removeprefix(IMAGES): arrays[name] for name in arrays if name.startswith(IMAGES)}
    missing = [name for name in FIELDS if name not in arrays] + ([] if images else [IMAGES + "CAMERA"])
    if missing:
        raise _wrong(path, f"it lacks {', '.join(missing)} and has {', '.join(sorted(arrays))}")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise _wrong(path, f"its arrays differ in length: {lengths}")
    for name, pictures in images.items():
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise _wrong(
                path,
                f"images of {name!r} must be uint8 (number, height, width, 3), "
                f"got {pictures.dtype} {pictures.shape}",
            )
    return [
        Request(
            Observation(
                {name: pictures[i] for name, pictures in images.items()},
                arrays["state"][i],
                str(arrays["instruction"][i]),
            ),
            EpisodeKey(
                str(arrays["suite"][i]), *(int(arrays[name][i]) for name in ("task_id", "episode", "seed"))
            ),
            int(arrays["call"][i]),
        )
        for i in range(lengths["call"])
    ]


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if not zipfile.is_zipfile(path):
        raise _wrong(path, "it is not a .npz, or only a part of one")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, zipfile.BadZipFile) as error:
        raise _wrong(path, str(error)) from error


def _wrong(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} does not hold saved requests: {why}; {WAY_OUT}")
