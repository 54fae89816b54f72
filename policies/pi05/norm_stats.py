"""Normalisation statistics: reading them from each layout, and the two formulas."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from policies.base import ACTION_DIM

STATE_DIM = 8  # eef position 3, axis-angle 3, gripper joints 2
NORM_MODES = {"quantile": ("q01", "q99"), "mean_std": ("mean", "std")}
OPENPI_EPS = 1e-6  # openpi transforms.py
LEROBOT_EPS = 1e-8  # lerobot processor/normalize_processor.py
Stats = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class NormStats:
    """Statistics of one data set: `mean`, `std`, `q01`, `q99`, some of which may be absent, in float64."""

    state: Stats  # by statistic, (8,) or longer
    actions: Stats  # likewise, (7,) or longer
    eps: float  # added to the divisor
    source: str  # where they were read
    sha256: str  # of that file


@dataclass(frozen=True)
class Normalizer:
    """One feature, scaled by quantiles to about [-1, 1] or by mean and deviation; never clipped.

    Raises ValueError where `mode` is unknown, or its statistics are absent or too short.
    """

    stats: Stats
    mode: str
    eps: float
    dim: int
    source: str

    def __post_init__(self) -> None:
        if self.mode not in NORM_MODES:
            raise ValueError(f"checkpoint.norm_mode must be one of {sorted(NORM_MODES)}, got {self.mode!r}")
        for name in NORM_MODES[self.mode]:
            if name not in self.stats:
                raise ValueError(
                    f"checkpoint.norm_mode={self.mode} needs {name!r}, "
                    f"{self.source} has {sorted(self.stats)}; "
                    "set checkpoint.norm_mode to the one that the weights were trained with"
                )
            if self.stats[name].ndim != 1 or len(self.stats[name]) < self.dim:
                raise ValueError(
                    f"{name} must have at least {self.dim} numbers, got shape {self.stats[name].shape} "
                    f"in {self.source}"
                )

    def normalize(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale x, shape (..., dim)."""
        first, second = (self.stats[name][: self.dim] for name in NORM_MODES[self.mode])
        if self.mode == "quantile":
            return (x - first) / (second - first + self.eps) * 2.0 - 1.0
        return (x - first) / (second + self.eps)

    def unnormalize(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Undo `normalize`, shape (..., dim)."""
        first, second = (self.stats[name][: self.dim] for name in NORM_MODES[self.mode])
        if self.mode == "quantile":
            return (x + 1.0) / 2.0 * (second - first + self.eps) + first
        return x * (second + self.eps) + first


def unit_stats() -> NormStats:
    """Statistics that change nothing (but for eps), for random weights."""
    state, actions = (
        {
            "mean": np.zeros(dim),
            "std": np.ones(dim),
            "q01": -np.ones(dim),
            "q99": np.ones(dim),
        }
        for dim in (STATE_DIM, ACTION_DIM)
    )
    return NormStats(state, actions, OPENPI_EPS, source="unit statistics", sha256="none")


def read_json_stats(path: Path) -> NormStats:
    """Read openpi's norm_stats.json, which is also the native format; ValueError for anything else."""
    content = path.read_bytes()
    try:
        groups = json.loads(content)["norm_stats"]
        state, actions = (_arrays(groups[name]) for name in ("state", "actions"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'norm stats must be {{"norm_stats": {{"state": {{...}}, "actions": {{...}}}}}}, '
            f"got {path} ({type(error).__name__}: {error})"
        ) from error
    return NormStats(state, actions, OPENPI_EPS, str(path), hashlib.sha256(content).hexdigest())


def read_lerobot_stats(path: Path) -> NormStats:
    """Read lerobot's normaliser state: tensors named `{feature}.{statistic}`.

    Raises ValueError for no safetensors file, or one without state or actions.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"norm stats must be a safetensors file, got {path}: {error}; download or convert it again"
        ) from error
    groups: dict[str, dict[str, NDArray[np.float64]]] = {"observation.state": {}, "action": {}}
    for key, tensor in tensors.items():
        feature, _, statistic = key.rpartition(".")
        if feature in groups:
            groups[feature][statistic] = np.asarray(tensor, dtype=np.float64)
    for feature, stats in groups.items():
        if not stats:
            raise ValueError(f"norm stats must have {feature}.*, {path} has {sorted(tensors)}")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return NormStats(groups["observation.state"], groups["action"], LEROBOT_EPS, str(path), sha256)


def write_json_stats(path: Path, stats: NormStats) -> None:
    """Write the native norm_stats.json, which implies openpi's eps: ValueError for another."""
    if stats.eps != OPENPI_EPS:
        raise ValueError(
            f"norm_stats.json implies eps={OPENPI_EPS}, got eps={stats.eps} from {stats.source}; "
            "recompute them in openpi's format"
        )
    groups = {name: _lists(getattr(stats, name)) for name in ("state", "actions")}
    path.write_text(json.dumps({"norm_stats": groups}, indent=1))


def _arrays(group: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    arrays: dict[str, ArrayLike] = {name: value for name, value in group.items() if value is not None}
    return {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items()}


def _lists(stats: Stats) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in stats.items()}
