"""Launch of a persistent denoise kernel: one program for each processor."""

import functools
from typing import Any

import torch
from torch import Tensor

from optim.kernels.denoise.contract import (
    BLOCK_KEYS,
    Heads,
    Modulations,
    OldChunk,
    PrefixCache,
    Scratch,
    Sizes,
    Weights,
    splits,
)
from policies.pi05.layers import NORM_EPS


def launch(
    kernel: Any,
    actions_BHA: Tensor,
    heads: Heads,
    modulations: Modulations,
    weights: Weights,
    prefix: PrefixCache,
    sizes: Sizes,
    scratch: Scratch,
    old: OldChunk | None,
    **options: int,
) -> None:
    """Launch a persistent kernel, one program for each processor.

    Args:
        weights: packed for this kernel.
        options: constants of this kernel alone, and how Triton launches it.
    """
    batch, horizon, action_dim = actions_BHA.shape
    layers, _, _, tokens, _ = prefix.keys_LB1PD.shape
    steps = modulations.out_shift_EA.shape[0]
    prefix_splits = splits(tokens)
    kernel[(programs(actions_BHA.device),)](
        actions_BHA,
        *vars(heads).values(),
        *vars(modulations).values(),
        *vars(weights).values(),
        prefix.cos,
        prefix.sin,
        prefix.keys_LB1PD,
        prefix.values_LB1PD,
        prefix.keys_LB1PD if prefix.bias is None else prefix.bias,
        *((actions_BHA, actions_BHA) if old is None else (old.old_2BHA, old.steps_2E)),
        *vars(scratch).values(),
        steps,
        layers,
        batch,
        horizon,
        tokens,
        scratch.lse_BSR.shape[1],
        prefix_splits,
        -1.0 / steps,
        NORM_EPS,
        sizes.head_dim**-0.5,
        A=action_dim,
        W=sizes.width,
        X=sizes.heads,
        D=sizes.head_dim,
        F=sizes.mlp_dim,
        BLOCK_KEYS=BLOCK_KEYS,
        HAS_BIAS=prefix.bias is not None,
        HAS_OLD=old is not None,
        launch_cooperative_grid=actions_BHA.is_cuda,  # all programs are resident, or the launch fails
        **options,
    )


@functools.cache
def programs(device: torch.device) -> int:
    """Count one program for each processor: all must be resident, since they wait for each other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
