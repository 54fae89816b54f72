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
    OldChunk,
    PrefixCache,
    Scratch,
    Sizes,
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
    """Cut the weights of a network that the kernel takes (`ring_obstacle`)."""
    attention = sizes.heads * sizes.head_dim
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


def ring_obstacle(sizes: Sizes, rows: int, processors: int, shared_bytes: int) -> str | None:
    """Say why the kernel cannot run; None where it can.

    Args:
        processors: of the GPU.
        shared_bytes: shared memory that one program can have.
    """
    if rows > ROWS:
        return f"batch * horizon must be <= {ROWS}, got {rows}"
    least = min(sizes.width, sizes.heads * sizes.head_dim, sizes.mlp_dim)
    if least < LEAST_SIZE:
        return f"expert.width, expert.mlp_dim and num_heads * head_dim must be >= {LEAST_SIZE}, got {least}"
    if sizes.head_dim < COLUMNS:
        return f"expert.head_dim must be >= {COLUMNS}, got {sizes.head_dim}"
    tiles = tiling(sizes)
    if tiles.programs > processors:
        return f"it needs {tiles.programs} processors, this GPU has {processors}"
    slots = num_slots(sizes, shared_bytes)
    if slots < tiles.min_slots:
        return f"it needs {tiles.min_slots} slots in shared memory, {shared_bytes} bytes hold {slots}"
    return None


def obstacle_on(device: torch.device, sizes: Sizes, rows: int) -> str | None:
    """Say why the kernel cannot run on a device; None where it can."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    return ring_obstacle(sizes, rows, programs(device), _shared_bytes(device))


def pack_for_ring(weights: Weights, sizes: Sizes) -> Weights:
    """Pack weights as `denoise_ring` takes them: chunk after chunk, each as it lies in its slot.

    Raises:
        ValueError: the weights are not bfloat16.
    """
    if weights.qkv_LCK.dtype != torch.bfloat16:
        raise ValueError(f"the ring kernel takes weights in bfloat16, got {weights.qkv_LCK.dtype}")
    tiles = tiling(sizes)
    return Weights(
        ring_order(weights.qkv_LCK, COLUMNS, 1, tiles.width),
        ring_order(weights.output_LCK, X_COLUMNS, 1, tiles.attention),
        ring_order(weights.gate_up_LCK, COLUMNS, 2, tiles.width),
        ring_order(weights.down_LCK, X_COLUMNS, 1, tiles.mlp),
    )


def ring_order(weight_LCK: Tensor, columns: int, tiles: int, inner: int) -> Tensor:
    """Put a weight in the order in which its chunks go through the ring; its shape stays.

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
    old: OldChunk | None = None,
) -> Scratch:
    """Turn noise into actions, in place; float32.

    Args:
        weights: from `pack_for_ring`.

    Returns:
        The scratch memory.

    Raises:
        ValueError: the kernel cannot run; names why.
    """
    from optim.kernels.denoise.ring_gluon import denoise_kernel

    batch, horizon, _ = actions_BHA.shape
    if (obstacle := obstacle_on(actions_BHA.device, sizes, batch * horizon)) is not None:
        raise ValueError(f"the ring kernel cannot run: {obstacle}")
    tiles = tiling(sizes)
    scratch = new_scratch(sizes, prefix, batch, horizon)
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
        K_W=tiles.width,
        K_O=tiles.attention,
        K_F=tiles.mlp,
        SLOT=tiles.slot_bytes // 2,
        RING=num_slots(sizes, _shared_bytes(actions_BHA.device)),
        num_warps=WARPS,
    )
    return scratch


def _shared_bytes(device: torch.device) -> int:
    properties: Any = torch.cuda.get_device_properties(device)  # its stub lacks what we need
    return int(properties.shared_memory_per_block_optin)
