"""Actions of one inference in both units, for comparisons of policies.

H horizon, A padded action dims, J 7 robot action dims.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.base import Request
from policies.pi05.policy import Pi05Policy, StageArgs, run_stages
from policies.pi05.timing import StageTimer


@dataclass(frozen=True)
class Actions:
    """What one inference gave, on the host.

    Attributes:
        normalised_HA: what the network returned, float32.
        in_units_HJ: the same in the simulator's units.
    """

    normalised_HA: Tensor
    in_units_HJ: NDArray[np.float64]

    def max_abs_action(self, reference: "Actions") -> float:
        """The largest difference of a number, in the simulator's units."""
        return float(np.abs(self.in_units_HJ - reference.in_units_HJ).max())


@torch.no_grad()
def infer_once(policy: Pi05Policy, request: Request) -> tuple[Actions, StageArgs]:
    """Run the stages on one request; return its actions and what each stage got.

    Non-obvious behaviors:
        Arguments of a stage may be another engine's buffers, which its next call overwrites.
    """
    inputs = policy.preprocess([request.observation], policy.form)
    actions_BHA, args = run_stages(
        policy.stages,
        inputs,
        lambda: policy.noise([request]),
        StageTimer(policy.device),
        lambda: policy.old([request]),
    )
    normalised_BHA = actions_BHA.float().cpu()
    return Actions(normalised_BHA[0], policy.postprocess(normalised_BHA.numpy())[0]), args
