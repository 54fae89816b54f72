"""The persistent denoise kernels: what they read and write.

M rows (B * H), B batch, H horizon, W width of the expert, X query heads, D head dimension, F width of the
MLP, A action dimensions, C columns of a weight, K inner dimension of a weight, L layers, N = 2 L + 1 norms,
E Euler steps, P parts of a row, S splits of the keys. Weights are (out, in) as in `nn.Linear`, packed as the
kernel says.

Floor of one layer at full size and bf16, on an H200 (4.27 TB/s), by the bytes of its weights: qkv 5.2 MB,
1.2 us; output projection 4.2 MB, 1.0 us; gate and up 16.8 MB, 3.9 us; down 8.4 MB, 2.0 us. What the phases
reach is in docs/results.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from optim.kernels.denoise.ring_layout import X_COLUMNS

BLOCK_KEYS = 64
MOST_WARPS = 8
MOST_ROWS = 64  # of a block
STAGED = 5120  # elements of rows and columns that a warp has in shared memory, for each of two steps of K


@dataclass(frozen=True)
class Weights:
    """Packed weights of all layers; see `pack_qkv` and `interleave`."""

    qkv_LCK: Tensor
    output_LCK: Tensor
    gate_up_LCK: Tensor
    down_LCK: Tensor


@dataclass(frozen=True)
class Heads:
    """Projections of actions in and out, float32."""

    in_weight_WA: Tensor
    in_bias_W: Tensor
    out_weight_AW: Tensor


@dataclass(frozen=True)
class Modulations:
    """adaRMS of every norm at every t, float32, its shift taken through the weight that follows.

    Attributes:
        out_shift_EA: with the bias of the projection.
    """

    one_plus_scale_ENW: Tensor
    gate_ENW: Tensor
    qkv_shift_ELC: Tensor
    gate_up_shift_ELC: Tensor
    out_shift_EA: Tensor


@dataclass(frozen=True)
class PrefixCache:
    """What the suffix attends to, and its own geometry.

    Attributes:
        cos, sin: of the suffix, float32 (M, D / 2).
        bias: (B, 1, 1, P + H), or None.
    """

    keys_LB1PD: Tensor
    values_LB1PD: Tensor
    cos: Tensor
    sin: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class OldChunk:
    """What each Euler step is guided towards (`policies.pi05.denoise.guide`); float32, contiguous.

    Attributes:
        old_2BHA: the old chunk, and the weights of its numbers.
        steps_2E: t of each step, and the strength of its guidance.
    """

    old_2BHA: Tensor
    steps_2E: Tensor


@dataclass(frozen=True)
class Scratch:
    """What one phase leaves for the next; after the run, what the last layer of the last step left.

    Attributes:
        x_MW: residual stream, float32.
        scaled_MW: x (1 + scale) of the next norm.
        squares_MP: sums of squares of parts of x's rows, float32.
        partial_BSRD: attention of R = X H rows to a split of the keys, float32; lse_BSR the logs of its
            denominators.
        counter: arrivals of programs at the ends of phases.
    """

    x_MW: Tensor
    scaled_MW: Tensor
    squares_MP: Tensor
    queries_BXHD: Tensor
    keys_B1HD: Tensor
    values_B1HD: Tensor
    partial_BSRD: Tensor
    lse_BSR: Tensor
    attended_MC: Tensor
    hidden_MF: Tensor
    counter: Tensor


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network that the kernel takes.

    Raises:
        ValueError: a size that it does not take; names the supported ones.
    """

    width: int
    heads: int
    head_dim: int
    mlp_dim: int

    def __post_init__(self) -> None:
        for name, size in (
            ("expert.width", self.width),
            ("expert.num_heads * expert.head_dim", self.heads * self.head_dim),
            ("expert.mlp_dim", self.mlp_dim),
        ):
            if size < 64 or size & (size - 1):
                raise ValueError(
                    f"{name} must be a power of two >= 64, got {size}; use optim/denoise=compile"
                )

    def blocks(self, rows: int) -> dict[str, int]:
        """Cut the kernel's work for so many rows; chosen for 132 processors (docs/results)."""
        block_rows = min(MOST_ROWS, max(16, 1 << (rows - 1).bit_length()))
        inner = min(self.width, self.heads * self.head_dim, self.mlp_dim)
        split = min(MOST_WARPS, inner // 16)
        columns = 32
        block_k = min(inner // split, 1 << (STAGED // (block_rows + columns)).bit_length() - 1, 64)
        return {
            "M": block_rows,
            "N_QKV": min(columns, self.head_dim),
            "N_X": X_COLUMNS,
            "N_GATE_UP": columns,
            "BLOCK_K": block_k,
            "SPLIT": split,
        }


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Alternate rows: first[0], second[0], first[1], second[1], ..."""
    return torch.stack((first, second), dim=1).flatten(0, 1)


def pack_qkv(q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
    """Pack a weight whose rows pair the partners of RoPE: d, d + D / 2 for each d of a head."""
    heads = [*q.split(dim), *k.split(dim), *v.split(dim)]
    return torch.cat([interleave(head[: dim // 2], head[dim // 2 :]) for head in heads])


def new_scratch(sizes: Sizes, prefix: PrefixCache, batch: int, horizon: int) -> Scratch:
    """Allocate scratch memory on the prefix's device; only the counter is written."""
    keys = prefix.keys_LB1PD
    rows, split = batch * horizon, splits(keys.shape[3]) + splits(horizon)
    new = functools.partial(torch.empty, device=keys.device, dtype=keys.dtype)
    new32 = functools.partial(torch.empty, device=keys.device, dtype=torch.float32)
    return Scratch(
        x_MW=new32(rows, sizes.width),
        scaled_MW=new(rows, sizes.width),
        squares_MP=new32(rows, sizes.width // X_COLUMNS),
        queries_BXHD=new(batch, sizes.heads, horizon, sizes.head_dim),
        keys_B1HD=new(batch, 1, horizon, sizes.head_dim),
        values_B1HD=new(batch, 1, horizon, sizes.head_dim),
        partial_BSRD=new32(batch, split, sizes.heads * horizon, sizes.head_dim),
        lse_BSR=new32(batch, split, sizes.heads * horizon),
        attended_MC=new(rows, sizes.heads * sizes.head_dim),
        hidden_MF=new(rows, sizes.mlp_dim),
        counter=torch.zeros(1, device=keys.device, dtype=torch.int32),
    )


def splits(tokens: int) -> int:
    """Count the blocks of keys that so many tokens fill."""
    return -(-tokens // BLOCK_KEYS)
