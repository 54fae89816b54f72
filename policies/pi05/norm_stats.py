"""Normalisation statistics: reading them from each layout, and the two formulas."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from policies.base import ACTION_DIM
from policies.files import MOST_JSON, read_followed, read_json_object
from policies.text import brief, shorten

STATE_DIM = 8  # eef position 3, axis-angle 3, gripper joints 2
NORM_MODES = {"quantile": ("q01", "q99"), "mean_std": ("mean", "std")}
OPENPI_EPS = 1e-6  # openpi transforms.py
LEROBOT_EPS = 1e-8  # lerobot processor/normalize_processor.py
PADDED_DIM = 32  # numbers of pi0.5's state and action, of which LIBERO uses the first
# What padding with zeros leaves behind: openpi's quantiles are edges of bins 1e-10 beside the extremes
# (shared/normalize.py), and where it pads a deviation it takes 1 (transforms.py).
PADDING = {"mean": (0.0,), "std": (0.0, 1.0), "q01": (0.0,), "q99": (0.0,)}
PADDING_ATOL = 1e-6
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

    Statistics have `dim` numbers, or `PADDED_DIM` of which the rest is padding. Dimensions that never move
    are allowed: eps keeps the divisor from zero.

    Raises ValueError for an unknown `mode`, or statistics that are absent, of another length, not finite, not
    in order, or divide by zero. They are checked in `dtype`, in which the formulas are computed.
    """

    dtype: ClassVar[type[np.floating[Any]]] = np.float64

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
            self._check_values(name)
        first, second = NORM_MODES[self.mode]
        low, high = self.pair
        if self.mode == "quantile":
            if len(bad := np.flatnonzero(low > high)):
                raise self._error(second, bad[0], f"at least {first}[{bad[0]}]={low[bad[0]]}")
        elif len(bad := np.flatnonzero(high < 0)):
            raise self._error(second, bad[0], "at least 0")
        with np.errstate(over="ignore"):
            divisor = self.divisor
        if len(bad := np.flatnonzero((divisor == 0) | ~np.isfinite(divisor))):
            i, name = bad[0], self.dtype.__name__
            what = f"{second}[{i}] - {first}[{i}]" if self.mode == "quantile" else f"{second}[{i}]"
            raise ValueError(
                f"{what} must divide with eps={self.eps:g} in {name}, got {divisor[i]} in {self.source}; "
                "such numbers give no states or actions: compute the statistics again, or set eps above zero"
            )

    @cached_property
    def pair(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The two statistics of the mode, each (dim,), in `dtype`."""
        first, second = NORM_MODES[self.mode]
        with np.errstate(over="ignore"):  # a number that `dtype` cannot hold is infinite, and refused
            low = self.stats[first][: self.dim].astype(self.dtype)
            return low, self.stats[second][: self.dim].astype(self.dtype)

    @cached_property
    def divisor(self) -> NDArray[Any]:
        """What `normalize` divides by, (dim,)."""
        first, second = self.pair
        return (second - first if self.mode == "quantile" else second) + self.eps

    def _check_values(self, name: str) -> None:
        values = self.stats[name]
        if values.shape not in ((self.dim,), (PADDED_DIM,)):
            raise ValueError(
                f"{name} must have {self.dim} numbers, or {PADDED_DIM} with padding, got shape "
                f"{values.shape} in {self.source}; they belong to another robot: set checkpoint.norm_stats "
                "to those of the training data"
            )
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(values.astype(self.dtype))
        if len(bad := np.flatnonzero(~is_finite)):
            raise self._error(name, bad[0], f"finite in {self.dtype.__name__}")
        padding = np.asarray(PADDING[name])
        is_padding = (np.abs(values[:, None] - padding) <= PADDING_ATOL).any(axis=1)
        if len(bad := np.flatnonzero(~is_padding[self.dim :])):
            wanted = " or ".join(f"{value:g}" for value in padding)
            raise self._error(name, self.dim + bad[0], f"{wanted}, as padding after {self.dim} numbers is")

    def _error(self, name: str, i: int, wanted: str) -> ValueError:
        return ValueError(
            f"{name}[{i}] must be {wanted}, got {self.stats[name][i]} in {self.source}; "
            "set checkpoint.norm_stats to the statistics of the training data, or compute them again"
        )

    def normalize(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale x, shape (..., dim)."""
        first, _ = self.pair
        scaled = (x - first) / self.divisor
        return scaled * 2.0 - 1.0 if self.mode == "quantile" else scaled

    def unnormalize(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Undo `normalize`, shape (..., dim)."""
        first, _ = self.pair
        scaled = (x + 1.0) / 2.0 if self.mode == "quantile" else x
        return scaled * self.divisor + first


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
    groups = read_json_object(path).get("norm_stats")
    if not isinstance(groups, dict) or not all(
        isinstance(groups.get(name), dict) for name in ("state", "actions")
    ):
        raise ValueError(
            f'norm stats must be {{"norm_stats": {{"state": {{...}}, "actions": {{...}}}}}}, '
            f"got norm_stats={brief(groups)} in {path}; copy them from the training run"
        )
    state, actions = (_arrays(groups[name], name, path) for name in ("state", "actions"))
    return NormStats(state, actions, OPENPI_EPS, str(path), _sha256(path))


def read_lerobot_stats(path: Path) -> NormStats:
    """Read lerobot's normaliser state: tensors named `{feature}.{statistic}`.

    Raises ValueError for no safetensors file, one in less than float32, or without state or actions.
    """
    groups: dict[str, dict[str, NDArray[np.float64]]] = {"observation.state": {}, "action": {}}
    sha256 = _sha256(path)  # refuses what is no file of such a size before it is mapped
    try:
        with safe_open(path, framework="np") as file:
            keys = sorted(file.keys())
            for key in keys:
                feature, _, statistic = key.rpartition(".")
                if feature not in groups or statistic not in PADDING:
                    continue
                if (dtype := file.get_slice(key).get_dtype()) not in ("F32", "F64"):
                    raise ValueError(f"{key} must be F32 or F64, got {dtype} in {path}; compute it again")
                groups[feature][statistic] = file.get_tensor(key).astype(np.float64)
    except SafetensorError as error:
        raise ValueError(
            f"norm stats must be a safetensors file, got {path}: {error}; download or convert it again"
        ) from error
    for feature, stats in groups.items():
        if not stats:
            wanted = ", ".join(f"{feature}.{name}" for name in PADDING)
            raise ValueError(f"norm stats must have some of {wanted}; {path} has {shorten(keys)}")
    return NormStats(groups["observation.state"], groups["action"], LEROBOT_EPS, str(path), sha256)


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_followed(path, MOST_JSON)).hexdigest()


def write_json_stats(path: Path, stats: NormStats) -> None:
    """Write the native norm_stats.json, which implies openpi's eps: ValueError for another."""
    if stats.eps != OPENPI_EPS:
        raise ValueError(
            f"norm_stats.json implies eps={OPENPI_EPS}, got eps={stats.eps} from {stats.source}; "
            "recompute them in openpi's format"
        )
    groups = {name: _lists(getattr(stats, name)) for name in ("state", "actions")}
    path.write_text(json.dumps({"norm_stats": groups}, indent=1))


def _arrays(group: Mapping[str, Any], feature: str, path: Path) -> dict[str, NDArray[np.float64]]:
    arrays = {}
    for name, values in group.items():
        if values is None:
            continue
        try:
            if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
                raise TypeError
            arrays[name] = np.asarray(values, dtype=np.float64)
        except (TypeError, OverflowError):
            raise ValueError(
                f"{feature}.{brief(name)} must be a list of numbers, got {brief(values)} in {path}; "
                "copy the norm stats from the training run"
            ) from None
    return arrays


def _lists(stats: Stats) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in stats.items()}
