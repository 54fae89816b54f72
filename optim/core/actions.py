"""Actions of one inference in both units, for comparisons of policies.

H horizon, A padded action dims, J 7 robot action dims.
"""

from collections.abc import Sequence
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


def infer_once(policy: Pi05Policy, request: Request) -> tuple[Actions, StageArgs]:
    """`infer_together` for one request."""
    [actions], args = infer_together(policy, [request])
    return actions, args


@torch.no_grad()
def infer_together(policy: Pi05Policy, requests: Sequence[Request]) -> tuple[list[Actions], StageArgs]:
    """Run the stages on a batch; return each request's actions and what each stage got.

    Non-obvious behaviors:
        Arguments of a stage may be another engine's buffers, which its next call overwrites.
    """
    inputs = policy.preprocess([request.observation for request in requests], policy.form)
    actions_BHA, args = run_stages(
        policy.stages,
        inputs,
        lambda: policy.noise(requests),
        StageTimer(policy.device),
        lambda: policy.old(requests),
    )
    normalised_BHA = actions_BHA.float().cpu()
    in_units_BHJ = policy.postprocess(normalised_BHA.numpy())
    return [Actions(*pair) for pair in zip(normalised_BHA, in_units_BHJ, strict=True)], args
