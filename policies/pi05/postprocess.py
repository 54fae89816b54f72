"""Postprocessing: normalised actions in, the simulator's actions out.

B batch, H horizon, A padded action dims, J 7 robot action dims.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.pi05.norm_stats import Normalizer


@dataclass(frozen=True)
class Postprocess:
    """Unnormalises the first 7 dims and drops the padding; no clipping, no threshold on the gripper."""

    actions: Normalizer

    def __call__(self, actions_BHA: NDArray[np.float32]) -> NDArray[np.float64]:
        """Convert to float64 actions_BHJ; FloatingPointError for NaN or infinity, also in padded dims."""
        finite = np.isfinite(actions_BHA)
        if not finite.all():
            rows = np.flatnonzero(~finite.all(axis=(1, 2))).tolist()
            raise FloatingPointError(
                f"actions must be finite, got {int((~finite).sum())} of {finite.size} that are not, in rows "
                f"{rows} of the batch; check the stages' precision and the weights"
            )
        return self.actions.unnormalize(actions_BHA[..., : self.actions.dim].astype(np.float64))
