"""Launcher of the ring kernel (`ring_gluon`), whose weights arrive in a ring of shared memory.

It does what `phases.denoise` does, for up to 16 rows on a GPU with enough processors and shared memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optim.kernels.denoise.contract import (
    BLOCK_KEYS,
    Heads,
    Modulations,
    PrefixCache,
    Scratch,
    Sizes,
    Weight,
    Weights,
    new_scratch,
)
from optim.kernels.denoise.launch import launch, programs
from optim.kernels.denoise.ring_layout import COLUMNS, ROWS, RUN, WARPS, X_COLUMNS

LEAST_SIZE = 256  # of an inner dimension: 8 warps, 32 each
SUMS_BYTES = 16 * 1024  # of shared memory, for sums over warps
OTHER_BYTES = 2048  # attention's weights on their way to another layout
MAX_SLOTS = 6  # on an H200, 5 are as fast


@dataclass(frozen=True)
class Tiling:
    """How the kernel cuts its weights into tiles, and tiles into chunks, each of which fills a slot.

    Attributes:
        width, attention, mlp: what each warp takes of the inner dimensions at a time.
        programs: that the largest weight has tiles for.
        slot_bytes: of one slot of the ring.
        min_slots: that the ring needs: a phase reads all its chunks before their slots are filled again.
    """

    width: int
    attention: int
    mlp: int
    programs: int
    slot_bytes: int
    min_slots: int


def tiling(sizes: Sizes) -> Tiling:
    """Cut a network's weights.

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
    if sizes.head_dim < COLUMNS:
        raise ValueError(
            f"expert.head_dim must be >= {COLUMNS} for kernel=ring, got {sizes.head_dim}; "
            "use optim.denoise.kernel=phases"
        )
    width, wide, mlp = (
        min(64, sizes.width // WARPS),
        min(128, attention // WARPS),
        min(128, sizes.mlp_dim // WARPS),
    )
    qkv_tiles = (sizes.heads + 2) * sizes.head_dim // COLUMNS
    return Tiling(
        width,
        wide,
        mlp,
        programs=max(qkv_tiles, sizes.width // X_COLUMNS, sizes.mlp_dim // COLUMNS),
        slot_bytes=2 * WARPS * max(width * COLUMNS, wide * X_COLUMNS, mlp * X_COLUMNS),
        min_slots=max(
            2 * sizes.width // (WARPS * width), attention // (WARPS * wide), sizes.mlp_dim // (WARPS * mlp)
        ),
    )


def num_slots(sizes: Sizes, shared_bytes: int) -> int:
    """Count the slots that the ring has in a processor's shared memory."""
    free = shared_bytes - max(2 * BLOCK_KEYS * sizes.head_dim, SUMS_BYTES) - OTHER_BYTES
    return max(0, min(MAX_SLOTS, free // tiling(sizes).slot_bytes))


def require_ring(sizes: Sizes, rows: int, available: int, shared_bytes: int) -> None:
    """Raise ValueError where the kernel cannot run.

    Args:
        available: processors of the GPU.
        shared_bytes: shared memory that one program can have.
    """
    way_out = "use optim.denoise.kernel=phases"
    if rows > ROWS:
        raise ValueError(f"batch * horizon must be <= {ROWS} for kernel=ring, got {rows}; {way_out}")
    if (needed := tiling(sizes).programs) > available:
        raise ValueError(f"kernel=ring needs {needed} processors, this GPU has {available}; {way_out}")
    least = tiling(sizes).min_slots
    if (slots := num_slots(sizes, shared_bytes)) < least:
        raise ValueError(
            f"kernel=ring needs {least} tiles in shared memory, {shared_bytes} bytes hold {slots}; {way_out}"
        )


def pack_for_ring(weights: Weights, sizes: Sizes) -> Weights:
    """Pack weights as `denoise_ring` takes them: chunk after chunk, each as it lies in its slot.

    Raises:
        ValueError: see `tiling`; or the weights are not bfloat16.
    """
    if weights.qkv.values_LCK.dtype != torch.bfloat16:
        raise ValueError(f"kernel=ring takes weights=bf16, got {weights.qkv.values_LCK.dtype}")
    tiles = tiling(sizes)
    return Weights(
        Weight(ring_order(weights.qkv.values_LCK, COLUMNS, 1, tiles.width)),
        Weight(ring_order(weights.output.values_LCK, X_COLUMNS, 1, tiles.attention)),
        Weight(ring_order(weights.gate_up.values_LCK, COLUMNS, 2, tiles.width)),
        Weight(ring_order(weights.down.values_LCK, X_COLUMNS, 1, tiles.mlp)),
    )


def ring_order(weight_LCK: Tensor, columns: int, tiles: int, inner: int) -> Tensor:
    """Return a weight in the order in which its chunks go through the ring, of the same shape.

    A program has `tiles` tiles of so many columns; a chunk is WARPS * inner of K of one of them, tiles in
    turn. In a chunk, a warp's part of K comes after the other, in it column after column; where inner is 64
    or more, neighbouring runs of 32 of K are swapped in odd columns (`STAGED` of
    `optim.kernels.denoise.ring_weights`).
    """
    parts = weight_LCK.unflatten(2, (-1, WARPS, inner)).unflatten(1, (-1, tiles, columns))
    packed = parts.permute(0, 1, 4, 2, 5, 3, 6).contiguous()  # layer, program, chunk, tile, warp, column, K
    if inner >= 2 * RUN:
        runs = packed.unflatten(5, (-1, 2)).unflatten(7, (-1, 2, RUN))
        runs[..., 1, :, :, :] = runs[..., 1, :, :, :].flip(-2)
    return packed.view_as(weight_LCK)


def denoise_ring(
    actions_BHA: Tensor,
    heads: Heads,
    modulations: Modulations,
    weights: Weights,
    prefix: PrefixCache,
    sizes: Sizes,
) -> Scratch:
    """Turn noise into actions, in place; float32.

    Args:
        weights: from `pack_for_ring`.

    Returns:
        The scratch memory.

    Raises:
        ValueError: see `require_ring`.
    """
    from optim.kernels.denoise.ring_gluon import denoise_kernel

    device: Any = torch.cuda.get_device_properties(actions_BHA.device)  # its stub lacks what we need
    shared_bytes = int(device.shared_memory_per_block_optin)
    batch, horizon, _ = actions_BHA.shape
    require_ring(sizes, batch * horizon, programs(actions_BHA.device), shared_bytes)
    tiles = tiling(sizes)
    scratch = new_scratch(sizes, prefix, batch, horizon)
    launch(
        denoise_kernel,
        actions_BHA,
        heads,
        modulations,
        [weight.values_LCK for weight in vars(weights).values()],
        prefix,
        sizes,
        scratch,
        K_W=tiles.width,
        K_O=tiles.attention,
        K_F=tiles.mlp,
        SLOT=tiles.slot_bytes // 2,
        RING=num_slots(sizes, shared_bytes),
        num_warps=WARPS,
    )
    return scratch
