"""The recorded messages of others' programs; recorded/README.md says how they were made."""

from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("recorded")


def recording(name: str) -> dict[str, np.ndarray]:
    with np.load(RECORDED / f"{name}.npz") as file:
        return dict(file)


def messages(name: str, prefix: str) -> list[bytes]:
    """The recorded messages in order."""
    arrays = recording(name)
    return [arrays[f"{prefix}{i}"].tobytes() for i in range(sum(key.startswith(prefix) for key in arrays))]
