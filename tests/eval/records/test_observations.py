"""Saved requests load bit-equal; other files are refused with a way out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.records.observations import load_requests, save_requests
from policies.base import EpisodeKey, Observation, Request

WAY_OUT = r"python\S* -m optim\.calibrate calibrate\.keep=FILE\.npz"


def request_of(seed: int, size: int = 16) -> Request:
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        for name in ("agentview_image", "robot0_eye_in_hand_image")
    }
    observation = Observation(images, rng.normal(size=8), f"pick up bowl {'x' * seed}")
    return Request(observation, EpisodeKey("libero_spatial", seed, 3, 2**32 - 1), call=seed)


def test_saved_requests_load_bit_equal(tmp_path: Path) -> None:
    saved = [request_of(seed) for seed in range(3)]
    path = tmp_path / "new" / "requests.observations"
    save_requests(path, saved)
    loaded = load_requests(path)
    assert len(loaded) == 3
    for old, new in zip(saved, loaded, strict=True):
        assert (new.episode, new.call) == (old.episode, old.call)
        assert new.observation.instruction == old.observation.instruction
        assert new.observation.state.dtype == np.float64
        assert new.observation.state.tobytes() == old.observation.state.tobytes()
        assert new.observation.images.keys() == old.observation.images.keys()
        for name, image in new.observation.images.items():
            assert image.dtype == np.uint8
            assert np.array_equal(image, old.observation.images[name])


def test_requests_that_do_not_stack_are_refused(tmp_path: Path) -> None:
    one, other = request_of(0), request_of(1, size=8)
    blind = replace(one, observation=replace(one.observation, images={}))
    for requests in ([one, other], [one, blind], []):
        with pytest.raises(ValueError, match="same cameras and image sizes"):
            save_requests(tmp_path / "requests.npz", requests)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no observations .*nowhere.npz.*{WAY_OUT}"):
        load_requests(tmp_path / "nowhere.npz")


def _text(path: Path) -> None:
    path.write_text("observations")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _pickle(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, state=np.array([{}], dtype=object))


def _half(path: Path) -> None:
    save_requests(path, [request_of(0)])
    path.write_bytes(path.read_bytes()[:-100])


def _changed(path: Path, **arrays: np.ndarray) -> None:
    save_requests(path, [request_of(0), request_of(1)])
    with np.load(path) as file:
        changed = {**file, **arrays}
    with path.open("wb") as out:
        np.savez(out, **{name: array for name, array in changed.items() if array is not None})


def _without_state(path: Path) -> None:
    _changed(path, state=None)  # type: ignore[arg-type]


def _of_different_lengths(path: Path) -> None:
    _changed(path, call=np.zeros(3, dtype=int))


def _float_images(path: Path) -> None:
    _changed(path, **{"images/agentview_image": np.zeros((2, 16, 16, 3))})


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (_text, "it is not a .npz"),
        (_empty, "it is not a .npz"),
        (_bare_array, "it is not a .npz"),
        (_pickle, "'state' must be a plain array, got object"),
        (_half, "only a part of one"),
        (_without_state, "it lacks state"),
        (_of_different_lengths, "differ in length"),
        (_float_images, "'images/agentview_image' must be uint8"),
    ],
)
def test_a_file_with_something_else_is_refused(
    write: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(ValueError, match=f"other.npz does not hold saved requests: .*{why}.*{WAY_OUT}"):
        load_requests(path)
