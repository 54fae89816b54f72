"""Parts of the phases kernel that no phase owns: barriers, tiles and loads."""

import triton
import triton.language as tl

from optim.kernels.sync import ARRIVE, AWAIT, PREFETCH

ATTENTION_ROWS = tl.constexpr(16)  # of a tile; the least that tensor cores take


@triton.jit
def arrive(counter):
    """Count this program in; what it wrote is there for those who wait."""
    tl.debug_barrier()
    tl.inline_asm_elementwise(
        ARRIVE,
        "=r,l",
        [counter],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def await_all(counter, arrivals):
    """Wait until so many programs have counted themselves in."""
    tl.inline_asm_elementwise(
        AWAIT,
        "=r,l,r",
        [counter, arrivals],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.debug_barrier()


@triton.jit
def prefetch(base, first, end, COUNT: tl.constexpr):
    """Fetch COUNT contiguous elements, or those before `end`, into the L2 cache."""
    LINE: tl.constexpr = 128 * 8 // base.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.cdiv(COUNT, LINE)
    at = tl.minimum(first + tl.arange(0, triton.next_power_of_2(LINES)) * LINE, end - 1)
    tl.inline_asm_elementwise(
        PREFETCH,
        "=r,l",
        [base + at],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def multiply(
    a, weight, first_row, rows, column,
    K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """M rows of a times N columns of a weight, float32; each warp takes a part of every step of K."""
    row = first_row + tl.arange(0, M)
    is_row = (row < rows)[None, :, None]
    inner = tl.arange(0, SPLIT)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    total = tl.zeros((SPLIT, M, N), dtype=tl.float32)
    for start in tl.range(0, K, SPLIT * BLOCK_K, num_stages=3):
        k = start + inner
        left = tl.load(a + row[None, :, None] * K + k[:, None, :], mask=is_row, other=0.0)
        right = tl.load(weight + column[None, None, :] * K + k[:, :, None])
        total += tl.dot(left, right, input_precision="ieee")
    parts = tl.permute(total, (1, 2, 0))  # `tl.sum` would shuffle scalars; this moves the tile once
    if SPLIT == 8:
        one, other = tl.split(tl.reshape(parts, (M, N, 4, 2)))
        parts = one + other
    one, other = tl.split(tl.reshape(parts, (M, N, 2, 2)))
    one, other = tl.split(one + other)
    return one + other


@triton.jit
def load_squares(squares, row, rows, PARTS: tl.constexpr):
    part = tl.arange(0, PARTS)
    return tl.load(squares + row[:, None] * PARTS + part[None, :], mask=(row < rows)[:, None], other=0.0)


@triton.jit
def write_stream(value, x, scaled, squares, scales, row, rows, tile, W: tl.constexpr, N: tl.constexpr):
    """Write a tile of the residual stream, and what the next norm needs of it."""
    is_row = row < rows
    at = row[:, None] * W + (tile * N + tl.arange(0, N))[None, :]
    tl.store(x + at, value, mask=is_row[:, None])
    tl.store(scaled + at, (value * scales[None, :]).to(scaled.dtype.element_ty), mask=is_row[:, None])
    tl.store(squares + row * (W // N) + tile, tl.sum(value * value, axis=1), mask=is_row)


@triton.jit
def load_prefix(
    keys, values, tile, prefix, splits, prefix_splits, row_blocks, batch,
    D: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Keys and values of a tile of the attention if they are the prefix's, which nobody writes."""
    split, sample = tile % splits, tile // (splits * row_blocks)
    key = split * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    there = ((key < prefix) & (split < prefix_splits) & (sample < batch))[:, None]
    at = (sample * prefix + key)[:, None] * D + tl.arange(0, D)[None, :]
    return tl.load(keys + at, mask=there, other=0.0), tl.load(values + at, mask=there, other=0.0)
