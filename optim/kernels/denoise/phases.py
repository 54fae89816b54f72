"""Launcher of the phases kernel."""

from torch import Tensor

from optim.kernels.denoise.contract import (
    Heads,
    Modulations,
    OldChunk,
    PrefixCache,
    Scratch,
    Sizes,
    Weights,
    new_scratch,
)
from optim.kernels.denoise.launch import launch


def denoise(
    actions_BHA: Tensor,
    heads: Heads,
    modulations: Modulations,
    weights: Weights,
    prefix: PrefixCache,
    sizes: Sizes,
    old: OldChunk | None = None,
) -> Scratch:
    """Turn noise into actions, in place; float32.

    Returns:
        The scratch memory.
    """
    import triton

    from optim.kernels.denoise.phases_triton import denoise_kernel

    batch, horizon, _ = actions_BHA.shape
    scratch = new_scratch(sizes, prefix, batch, horizon)
    blocks = sizes.blocks(batch * horizon)
    launch(
        denoise_kernel,
        actions_BHA,
        heads,
        modulations,
        weights,
        prefix,
        sizes,
        scratch,
        old,
        **blocks,
        SPLITS=triton.next_power_of_2(scratch.lse_BSR.shape[1]),
        num_stages=1,
        num_warps=blocks["SPLIT"],
    )
    return scratch
