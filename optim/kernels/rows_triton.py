"""Triton kernels of `optim.kernels.rows`; imports Triton, so only where it is there.

A program holds one row, or a block of one, in registers: one pass over memory. FP8 is e4m3, saturated at 448.
"""

import triton
import triton.language as tl


@triton.jit
def store_fp8(to, value, inverse_scale, mask):
    """Store value * inverse_scale, saturated, in FP8."""
    scaled = value * tl.load(inverse_scale)
    clamped = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
    tl.store(to, clamped.to(to.dtype.element_ty), mask=mask)


@triton.jit
def add_norm_kernel(
    x,
    delta,
    weight,
    bias,
    inverse_scale,
    out,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_LAYER_NORM: tl.constexpr,
):
    """x += delta, in place; out = norm(x) * weight (+ bias)."""
    at = tl.program_id(0) * WIDTH + tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        value = value.to(x.dtype.element_ty).to(tl.float32)
        tl.store(x + at, value.to(x.dtype.element_ty), mask=inside)
    if IS_LAYER_NORM:
        value = tl.where(inside, value - tl.sum(value, axis=0) / WIDTH, 0.0)
    normed = value * tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    normed *= tl.load(weight + column, mask=inside, other=0.0)
    if IS_LAYER_NORM:
        normed += tl.load(bias + column, mask=inside, other=0.0)
    if IS_FP8:
        store_fp8(out + at, normed, inverse_scale, inside)
    else:
        tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu(x):
    """GELU, tanh approximation: tanh(y) is 2 sigmoid(2 y) - 1."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def gelu_kernel(x, inverse_scale, rows8, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """rows8 = gelu(x), in FP8."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0) * WIDTH + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    store_fp8(rows8 + at, _gelu(value), inverse_scale, inside)


@triton.jit
def geglu_kernel(gate_up, inverse_scale, rows8, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """rows8 = gelu(gate) * up, in FP8; a row of gate_up is WIDTH gates, then WIDTH ups."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    store_fp8(rows8 + row * WIDTH + column, _gelu(gate) * up, inverse_scale, inside)


@triton.jit
def rope_split_kernel(
    qkv,
    cos,
    sin,
    queries,
    keys,
    values,
    rows,
    tokens,
    X: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One head of some tokens: queries and keys rotated, values copied, each to (heads, tokens, D).

    A row of qkv holds X heads of queries, G of keys, G of values. Tokens of a batch follow one another.
    """
    head = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = (row < rows)[:, None]
    batch, token = row // tokens, row % tokens
    half = tl.arange(0, D // 2)[None, :]
    at = qkv + (row * (X + 2 * G) + head)[:, None] * D + half
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    if head < X + G:
        angle = row[:, None] * (D // 2) + half
        c, s = tl.load(cos + angle, mask=inside, other=0.0), tl.load(sin + angle, mask=inside, other=0.0)
        first, second = first * c - second * s, second * c + first * s
    if head < X:
        to = queries + ((batch * X + head) * tokens + token)[:, None] * D + half
    elif head < X + G:
        to = keys + ((batch * G + head - X) * tokens + token)[:, None] * D + half
    else:
        to = values + ((batch * G + head - X - G) * tokens + token)[:, None] * D + half
    tl.store(to, first.to(keys.dtype.element_ty), mask=inside)
    tl.store(to + D // 2, second.to(keys.dtype.element_ty), mask=inside)
