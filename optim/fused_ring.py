"""Launch of the denoise kernel whose weights arrive in a ring of shared memory (`optim.fused_ring_kernel`).

It does what `optim.fused_denoise_ops.denoise` does, for up to 16 rows on a GPU with enough processors and
shared memory; its plain reference is `optim.fused_denoise_ops.denoise_reference`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optim.fused_denoise_ops import (
    BLOCK_KEYS,
    Heads,
    Modulations,
    Prefix,
    Scratch,
    Sizes,
    Weights,
    new_scratch,
    programs,
    splits,
)
from policies.pi05.layers import NORM_EPS

ROWS, WARPS = 16, 8
LEAST_SIZE = 256  # of an inner dimension: 8 warps, 32 each
SCRATCH_BYTES = 16 * 1024  # of shared memory, for sums over warps
FEWEST_PLACES, MOST_PLACES = 2, 5


@dataclass(frozen=True)
class Cut:
    """How the kernel cuts its weights.

    Attributes:
        width, attention, mlp: what each warp takes of the inner dimensions at a time.
        programs: that the largest weight has tiles for.
        place_bytes: of the ring.
    """

    width: int
    attention: int
    mlp: int
    programs: int
    place_bytes: int


def cut(sizes: Sizes) -> Cut:
    """Return how the kernel cuts a network's weights.

    Raises:
        ValueError: an inner dimension is too small; names the least.
    """
    attention = sizes.heads * sizes.head_dim
    least = min(sizes.width, attention, sizes.mlp_dim)
    if least < LEAST_SIZE:
        raise ValueError(
            f"expert.width, expert.mlp_dim and num_heads * head_dim must be >= {LEAST_SIZE} for kernel=ring, "
            f"got {least}; use optim.denoise.kernel=phases"
        )
    width, wide, mlp = (
        min(64, sizes.width // WARPS),
        min(128, attention // WARPS),
        min(128, sizes.mlp_dim // WARPS),
    )
    qkv_tiles = (sizes.heads + 2) * sizes.head_dim // 32
    return Cut(
        width,
        wide,
        mlp,
        programs=max(qkv_tiles, sizes.width // 16, sizes.mlp_dim // 32),
        place_bytes=2 * WARPS * max(width * 32, wide * 16, mlp * 16),
    )


def places(sizes: Sizes, shared_bytes: int) -> int:
    """Return how many places the ring has in a processor's shared memory; see FEWEST_PLACES."""
    free = shared_bytes - 2 * BLOCK_KEYS * sizes.head_dim - SCRATCH_BYTES
    return min(MOST_PLACES, free // cut(sizes).place_bytes)


def require_ring(sizes: Sizes, rows: int, available: int, shared_bytes: int) -> None:
    """Raise ValueError where the kernel cannot run.

    Args:
        available: processors of the GPU.
        shared_bytes: shared memory that one program can have.
    """
    way_out = "use optim.denoise.kernel=phases"
    if rows > ROWS:
        raise ValueError(f"batch * horizon must be <= {ROWS} for kernel=ring, got {rows}; {way_out}")
    if (needed := cut(sizes).programs) > available:
        raise ValueError(f"kernel=ring needs {needed} processors, this GPU has {available}; {way_out}")
    if (found := places(sizes, shared_bytes)) < FEWEST_PLACES:
        raise ValueError(
            f"kernel=ring needs {FEWEST_PLACES} tiles in shared memory, {shared_bytes} bytes hold {found}; "
            f"{way_out}"
        )


def denoise_ring(
    actions_BHA: Tensor,
    heads: Heads,
    modulations: Modulations,
    weights: Weights,
    prefix: Prefix,
    sizes: Sizes,
) -> Scratch:
    """Turn noise into actions, in place; float32.

    Returns:
        The scratch memory.

    Raises:
        ValueError: see `require_ring`; or the weights are not bfloat16.
    """
    import triton

    from optim.fused_ring_kernel import denoise_kernel

    batch, horizon, action_dim = actions_BHA.shape
    layers, _, _, tokens, _ = prefix.keys_LB1PD.shape
    if weights.qkv.values_LCK.dtype != torch.bfloat16:
        raise ValueError(f"kernel=ring takes weights=bf16, got {weights.qkv.values_LCK.dtype}")
    device: Any = torch.cuda.get_device_properties(actions_BHA.device)  # its stub lacks what we need
    shared_bytes = int(device.shared_memory_per_block_optin)
    require_ring(sizes, batch * horizon, device.multi_processor_count, shared_bytes)
    by = cut(sizes)
    steps = modulations.out_shift_EA.shape[0]
    scratch = new_scratch(sizes, prefix, batch, horizon)
    prefix_splits = splits(tokens)
    split = prefix_splits + splits(horizon)
    denoise_kernel[(programs(actions_BHA.device),)](
        actions_BHA,
        *vars(heads).values(),
        *vars(modulations).values(),
        *(weight.values_LCK for weight in vars(weights).values()),
        prefix.cos,
        prefix.sin,
        prefix.keys_LB1PD,
        prefix.values_LB1PD,
        prefix.keys_LB1PD if prefix.bias is None else prefix.bias,
        *scratch.pointers(),
        steps,
        layers,
        batch,
        horizon,
        tokens,
        split,
        prefix_splits,
        -1.0 / steps,
        NORM_EPS,
        sizes.head_dim**-0.5,
        A=action_dim,
        W=sizes.width,
        X=sizes.heads,
        D=sizes.head_dim,
        F=sizes.mlp_dim,
        K_W=by.width,
        K_O=by.attention,
        K_F=by.mlp,
        BLOCK_KEYS=BLOCK_KEYS,
        SPLITS=triton.next_power_of_2(split),
        HAS_BIAS=prefix.bias is not None,
        RING=places(sizes, shared_bytes),
        num_warps=WARPS,
        launch_cooperative_grid=True,
    )
    return scratch
