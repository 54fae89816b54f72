"""lerobot's normalisation: its own formulas, in float32 (processor/normalize_processor.py)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.pi05.norm_stats import NORM_MODES, Normalizer


@dataclass(frozen=True)
class LerobotNormalizer(Normalizer):
    """One feature, normalised as lerobot does.

    Non-obvious behaviors:
        eps is added to the deviation on the way in but not on the way out, and to a range of quantiles only
        where the range is zero. Statistics have exactly `dim` numbers: lerobot broadcasts them.

    Raises ValueError as `Normalizer` does, and for statistics of another length.
    """

    dtype = np.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in NORM_MODES[self.mode]:
            if len(self.stats[name]) != self.dim:
                raise ValueError(
                    f"{name} must have {self.dim} numbers, got {len(self.stats[name])} in {self.source}; "
                    "these statistics belong to another robot"
                )

    def normalize(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale x, shape (..., dim)."""
        value, (first, _) = x.astype(np.float32), self.pair
        if self.mode == "mean_std":
            return ((value - first) / self.divisor).astype(np.float64)
        return (2 * (value - first) / self.divisor - 1).astype(np.float64)

    def unnormalize(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Undo `normalize`, shape (..., dim)."""
        value, (first, second) = x.astype(np.float32), self.pair
        if self.mode == "mean_std":
            return (value * second + first).astype(np.float64)
        return ((value + 1) * self.divisor / 2 + first).astype(np.float64)

    @cached_property
    def divisor(self) -> NDArray[Any]:
        (first, second), eps = self.pair, np.float32(self.eps)
        if self.mode == "mean_std":
            return second + eps
        width = second - first
        return np.where(width == 0, eps, width)
