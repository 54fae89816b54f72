"""Seeds from names: the same words give the same seed in every process, on every machine."""

import hashlib
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from policies.base import EpisodeKey

Seeding = Literal["paired", "openpi"]
SEEDINGS = get_args(Seeding)


def _digest(*parts: str | int) -> bytes:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()


def stable_seed(*parts: str | int) -> int:
    """The head of the SHA-256 of the parts, 32 bits (Python's own `hash` differs between processes)."""
    return int.from_bytes(_digest(*parts)[:4], "big")


def action_noise(key: EpisodeKey, call: int, horizon: int, action_dim: int) -> NDArray[np.float32]:
    """Draw N(0, 1) noise, float32 (horizon, action_dim), for one inference of one episode.

    NumPy's Philox draws it on the host, so device, batch and order of calls do not matter.
    """
    digest = _digest("noise", key.seed, key.suite, key.task_id, key.episode, call)
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
    return generator.standard_normal((horizon, action_dim)).astype(np.float32)
