"""Triton kernels of `optim.fused_denoise`; imports Triton, so only where it is there.

Each multiplies a few rows with a weight that is read once: a program owns BLOCK_N output columns and streams
their weights. M rows of the batch (B * H), W width of the expert, K inner and N outer dimension of a weight,
D head dimension, X query heads, F width of the MLP, A action dimensions.

With OVERLAP a kernel is launched before the one that it depends on has ended (programmatic dependent
launch): it fetches its first weights, which nobody writes, and then waits for the other's results.

Weights are in the activations' precision, or in FP8 with a scale for each column, which is applied to the
sums.

adaRMS is folded: with r = 1 / rms(x), (x r (1 + scale) + shift) V = r (x (1 + scale)) V + shift V, and the
last term depends on weights and t alone.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _row_block(rows, BLOCK_M: tl.constexpr):
    row = tl.arange(0, BLOCK_M)
    return row, row < rows


@triton.jit
def _modulated_matmul(
    x,
    one_plus_scale,
    shifted,
    weight,
    weight_scale,
    rows,
    first_column,
    eps,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALED: tl.constexpr,
    OVERLAP: tl.constexpr,
    dtype: tl.constexpr,
):
    """adaRMS(x) times BLOCK_N columns of a weight, float32 (BLOCK_M, BLOCK_N)."""
    row, is_row = _row_block(rows, BLOCK_M)
    column = first_column + tl.arange(0, BLOCK_N)
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    inner = tl.arange(0, BLOCK_K)
    next_block = tl.load(weight + column[None, :] * W + inner[:, None])
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    for start in range(0, W, BLOCK_K):
        k = start + inner
        block = next_block
        if start + BLOCK_K < W:
            next_block = tl.load(weight + column[None, :] * W + (k + BLOCK_K)[:, None])
        part = tl.load(x + row[:, None] * W + k[None, :], mask=is_row[:, None], other=0.0)
        squares += tl.sum(part * part, axis=1)
        scaled = part * tl.load(one_plus_scale + k)[None, :]
        total += tl.dot(scaled.to(dtype), block.to(dtype), input_precision="ieee")
    if SCALED:
        total *= tl.load(weight_scale + column)[None, :]
    inverse_rms = tl.rsqrt(squares / W + eps)
    return total * inverse_rms[:, None] + tl.load(shifted + column)[None, :]


@triton.jit
def qkv_kernel(
    x,
    one_plus_scale,
    shifted,
    weight,
    weight_scale,
    cos,
    sin,
    queries,
    keys,
    values,
    rows,
    horizon,
    eps,
    W: tl.constexpr,
    X: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """adaRMS, projection to queries, keys and values, RoPE.

    Columns of `weight`: X heads of queries, one of keys, one of values; within queries and keys dimension d
    is followed by d + D / 2, its partner in the rotation.
    """
    first_column = tl.program_id(0) * BLOCK_N
    out = _modulated_matmul(
        x,
        one_plus_scale,
        shifted,
        weight,
        weight_scale,
        rows,
        first_column,
        eps,
        W,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SCALED,
        OVERLAP,
        keys.dtype.element_ty,
    )
    row, is_row = _row_block(rows, BLOCK_M)
    head = first_column // D
    within = first_column % D
    if head == X + 1:
        to = values + row[:, None] * D + (within + tl.arange(0, BLOCK_N))[None, :]
        tl.store(to, out.to(values.dtype.element_ty), mask=is_row[:, None])
    else:
        half = within // 2 + tl.arange(0, BLOCK_N // 2)
        a, b = tl.split(tl.reshape(out, (BLOCK_M, BLOCK_N // 2, 2)))
        at = row[:, None] * (D // 2) + half[None, :]
        c = tl.load(cos + at, mask=is_row[:, None], other=0.0)
        s = tl.load(sin + at, mask=is_row[:, None], other=0.0)
        if head == X:
            to = keys + row[:, None] * D + half[None, :]
        else:
            place = (row // horizon * X + head) * horizon + row % horizon
            to = queries + place[:, None] * D + half[None, :]
        tl.store(to, (a * c - b * s).to(keys.dtype.element_ty), mask=is_row[:, None])
        tl.store(to + D // 2, (b * c + a * s).to(keys.dtype.element_ty), mask=is_row[:, None])


@triton.jit
def gate_up_kernel(
    x,
    one_plus_scale,
    shifted,
    weight,
    weight_scale,
    hidden,
    rows,
    eps,
    W: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """adaRMS, gate and up projections, GEGLU; gate and up columns alternate in `weight`."""
    first_column = tl.program_id(0) * BLOCK_N
    out = _modulated_matmul(
        x,
        one_plus_scale,
        shifted,
        weight,
        weight_scale,
        rows,
        first_column,
        eps,
        W,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SCALED,
        OVERLAP,
        hidden.dtype.element_ty,
    )
    row, is_row = _row_block(rows, BLOCK_M)
    gate, up = tl.split(tl.reshape(out, (BLOCK_M, BLOCK_N // 2, 2)))
    bend = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 sqrt(2 / pi)
    column = first_column // 2 + tl.arange(0, BLOCK_N // 2)
    to = hidden + row[:, None] * F + column[None, :]
    tl.store(to, (gate * tl.sigmoid(bend) * up).to(hidden.dtype.element_ty), mask=is_row[:, None])


@triton.jit
def residual_kernel(
    a,
    weight,
    weight_scale,
    gate,
    x,
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x += gate * (a times weight), in place; a program owns its columns of x."""
    row, is_row = _row_block(rows, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    inner = tl.arange(0, BLOCK_K)
    next_block = tl.load(weight + column[None, :] * K + inner[:, None])
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    for start in range(0, K, BLOCK_K):
        k = start + inner
        block = next_block
        if start + BLOCK_K < K:
            next_block = tl.load(weight + column[None, :] * K + (k + BLOCK_K)[:, None])
        part = tl.load(a + row[:, None] * K + k[None, :], mask=is_row[:, None], other=0.0)
        total += tl.dot(part, block.to(part.dtype))
    if SCALED:
        total *= tl.load(weight_scale + column)[None, :]
    at = x + row[:, None] * N + column[None, :]
    before = tl.load(at, mask=is_row[:, None], other=0.0)
    tl.store(at, before + total * tl.load(gate + column)[None, :], mask=is_row[:, None])


@triton.jit
def action_in_kernel(
    actions,
    weight,
    bias,
    x,
    rows,
    A: tl.constexpr,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x = actions times weight + bias, all float32."""
    row, is_row = _row_block(rows, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    a = tl.arange(0, A)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    noisy = tl.load(actions + row[:, None] * A + a[None, :], mask=is_row[:, None], other=0.0)
    block = tl.load(weight + column[None, :] * A + a[:, None])
    out = tl.dot(noisy, block, input_precision="ieee") + tl.load(bias + column)[None, :]
    tl.store(x + row[:, None] * W + column[None, :], out, mask=is_row[:, None])


@triton.jit
def euler_kernel(
    x,
    one_plus_scale,
    shifted,
    weight,
    actions,
    rows,
    dt,
    eps,
    A: tl.constexpr,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """actions += dt * velocity, in place: final adaRMS, output projection, one Euler step, all float32."""
    first_column = tl.program_id(0) * BLOCK_N
    velocity = _modulated_matmul(
        x,
        one_plus_scale,
        shifted,
        weight,
        weight,
        rows,
        first_column,
        eps,
        W,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        False,
        OVERLAP,
        tl.float32,
    )
    row, is_row = _row_block(rows, BLOCK_M)
    at = actions + row[:, None] * A + (first_column + tl.arange(0, BLOCK_N))[None, :]
    before = tl.load(at, mask=is_row[:, None], other=0.0)
    tl.store(at, before + dt * velocity, mask=is_row[:, None])
