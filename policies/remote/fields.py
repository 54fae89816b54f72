"""Fields of an observation on the wire, as both protocols have them: writing, and reading with every check.

Beside what a protocol names, an observation of ours has `episode` {suite, task_id, episode, seed} and `call`;
our server draws the noise from them, others do not read them.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.base import EpisodeKey, Observation, Request
from policies.text import shorten

OWN_SERVER = "libero-vla-eval"  # `server` in the metadata of `python -m eval.serve`
AGENTVIEW, WRIST = "agentview_image", "robot0_eye_in_hand_image"
CAMERAS = (AGENTVIEW, WRIST)
STATE_DIM = 8
EPISODE, CALL = "episode", "call"
CHUNK, ACTION = "chunk", "action"  # what our server answers with
MOST_MB = 1024  # that a message may be allowed to have, in MiB
MAX_TEXT = 4096  # characters of an instruction
SIDES = range(1, 4097)  # of an image, in pixels
MAX_WORDS = 80  # characters of a value in a message
MAX_UNREAD = 20  # keys of a message that nobody reads and somebody may be told of


class FieldError(ValueError):
    """A message that lacks a field, or has a wrong one; the message names it."""


@dataclass(frozen=True)
class Received:
    """An observation that a client sent.

    Attributes:
        episode, call: None where the client did not say.
        unread: keys of the message that nobody reads, some of them where they are many.
    """

    observation: Observation
    episode: EpisodeKey | None
    call: int | None
    unread: tuple[str, ...]


def is_own(metadata: Mapping[Any, Any]) -> bool:
    """Whether a server's metadata says that it is `python -m eval.serve`."""
    name = metadata.get("server")
    return isinstance(name, str) and name == OWN_SERVER


def identity(request: Request) -> dict[str, Any]:
    """The fields of ours: which episode, and which of its inferences."""
    return {EPISODE: dict(vars(request.episode)), CALL: request.call}


def read_map(message: Any, name: str) -> Mapping[Any, Any]:
    """Take a map; FieldError for anything else."""
    if not isinstance(message, Mapping):
        raise FieldError(f"{name} must be a map, got {spell(message)}")
    return message


def require(message: Mapping[Any, Any], key: str) -> Any:
    """Take a field; FieldError where it is missing."""
    if key not in message:
        raise FieldError(f"the observation lacks {key!r}, it has {shorten(sorted(map(spell, message)))}")
    return message[key]


def read_image(message: Mapping[Any, Any], key: str) -> NDArray[np.uint8]:
    """Take an image, uint8 (height, width, 3)."""
    image = require(message, key)
    if not (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and all(side in SIDES for side in image.shape[:2])
    ):
        raise FieldError(f"{key} must be uint8 (height, width, 3), got {spell(image)}")
    return image


def read_state(message: Mapping[Any, Any], key: str) -> NDArray[np.float64]:
    """Take the robot's state as float64 (8,), finite."""
    state = require(message, key)
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "fiu" or state.shape != (STATE_DIM,):
        raise FieldError(f"{key} must be {STATE_DIM} real numbers, got {spell(state)}")
    state = as_float64(state)
    if not np.isfinite(state).all():
        raise FieldError(f"{key} must be finite, got {state.tolist()}")
    return state


def as_float64(numbers: NDArray[Any] | list[Any]) -> NDArray[np.float64]:
    """Copy real numbers as float64; what is too large for one becomes infinite, so check afterwards."""
    with np.errstate(over="ignore"):
        return np.array(numbers, dtype=np.float64)


def read_text(message: Mapping[Any, Any], key: str) -> str:
    """Take an instruction."""
    text = require(message, key)
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise FieldError(f"{key} must be a text of at most {MAX_TEXT} characters, got {spell(text)}")
    return text


def read_identity(message: Mapping[Any, Any]) -> tuple[EpisodeKey | None, int | None]:
    """Take `episode` and `call`, which come together or not at all."""
    if EPISODE not in message and CALL not in message:
        return None, None
    parts = read_map(require(message, EPISODE), EPISODE)
    names = [field.name for field in fields(EpisodeKey)]
    if set(parts) != set(names):
        raise FieldError(f"{EPISODE} must have {', '.join(names)}, got {shorten(sorted(map(spell, parts)))}")
    if not isinstance(parts["suite"], str) or len(parts["suite"]) > MAX_TEXT:
        raise FieldError(f"{EPISODE}.suite must be a text, got {spell(parts['suite'])}")
    numbers = {f"{EPISODE}.{name}": parts[name] for name in names if name != "suite"}
    for key, number in {**numbers, CALL: require(message, CALL)}.items():
        if type(number) is not int or number < 0:
            raise FieldError(f"{key} must be an integer from 0, got {spell(number)}")
    return EpisodeKey(**parts), message[CALL]


def unread(message: Mapping[Any, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """List the keys of a message beside these, the first `MAX_UNREAD` of them."""
    return tuple(islice((spell(key) for key in message if key not in keys), MAX_UNREAD))


class _Words(reprlib.Repr):
    """Few words for a value of any size, without writing all of it first."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = MAX_WORDS
        self.maxlevel = 2

    def repr_bytes(self, value: bytes, level: int) -> str:
        return self.repr_instance(value[:MAX_WORDS], level)

    def repr_ndarray(self, value: NDArray[Any], level: int) -> str:
        return f"{value.dtype} {value.shape}"


_words = _Words()


def spell(value: Any) -> str:
    """Name a value in a message: an array by dtype and shape, anything else in few words."""
    text = _words.repr(value)
    return text if len(text) <= MAX_WORDS else f"{text[: MAX_WORDS - 3]}..."
