"""Triton kernels of `optim.fused_rows`; imports Triton, so only where it is there.

A program holds one row, or a block of one, in registers: one pass over memory. FP8 is e4m3, saturated at 448.
"""

import triton
import triton.language as tl


@triton.jit
def _store_fp8(to, value, inverse_scale, mask):
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
    rows8,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    IS_LAYER_NORM: tl.constexpr,
):
    """x += delta, in place; rows8 = norm(x) * weight (+ bias), in FP8."""
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
    _store_fp8(rows8 + at, normed, inverse_scale, inside)


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
    _store_fp8(rows8 + at, _gelu(value), inverse_scale, inside)


@triton.jit
def geglu_kernel(gate_up, inverse_scale, rows8, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """rows8 = gelu(gate) * up, in FP8; a row of gate_up is WIDTH gates, then WIDTH ups."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    _store_fp8(rows8 + row * WIDTH + column, _gelu(gate) * up, inverse_scale, inside)


@triton.jit
def quantise_kernel(x, inverse_scale, rows8, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """rows8 = x, in FP8."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0) * WIDTH + column
    _store_fp8(rows8 + at, tl.load(x + at, mask=inside, other=0.0).to(tl.float32), inverse_scale, inside)


@triton.jit
def rope_split_kernel(
    qkv,
    cos,
    sin,
    queries,
    keys,
    values,
    tokens,
    X: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
):
    """One head of one token: queries and keys rotated, values copied, each to its tensor (heads, tokens, D).

    A row of qkv holds X heads of queries, G of keys, G of values. Tokens of a batch follow one another.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    batch, token = row // tokens, row % tokens
    half = tl.arange(0, D // 2)
    at = qkv + (row * (X + 2 * G) + head) * D + half
    first, second = tl.load(at).to(tl.float32), tl.load(at + D // 2).to(tl.float32)
    if head < X + G:
        c, s = tl.load(cos + row * (D // 2) + half), tl.load(sin + row * (D // 2) + half)
        first, second = first * c - second * s, second * c + first * s
    if head < X:
        to = queries + ((batch * X + head) * tokens + token) * D + half
    elif head < X + G:
        to = keys + ((batch * G + head - X) * tokens + token) * D + half
    else:
        to = values + ((batch * G + head - X - G) * tokens + token) * D + half
    tl.store(to, first.to(keys.dtype.element_ty))
    tl.store(to + D // 2, second.to(keys.dtype.element_ty))


@triton.jit
def flash_kernel(
    queries,
    keys,
    values,
    bias,
    inverse_scale,
    rows8,
    scale,
    tokens,
    X: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Attention of all tokens over all tokens, to FP8 rows (batch, tokens, X, D).

    The query heads of one KV head are further rows of it, so its keys are read once for all of them.
    """
    group = tl.program_id(1)
    rows = X // G * tokens
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    dim = tl.arange(0, D)
    q = tl.load(queries + (group * rows + row)[:, None] * D + dim[None, :], mask=is_row[:, None], other=0.0)
    top = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    out = tl.zeros((BLOCK_ROWS, D), dtype=tl.float32)
    token, head = row % tokens, row // tokens
    for start in range(0, tokens, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        is_key = key < tokens
        at = (group * tokens + key)[:, None] * D + dim[None, :]
        k = tl.load(keys + at, mask=is_key[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        if HAS_BIAS:
            place = ((group // G * tokens + token)[:, None]) * tokens + key[None, :]
            visible = is_row[:, None] & is_key[None, :]
            scores += tl.load(bias + place, mask=visible, other=0.0).to(tl.float32)
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.load(values + at, mask=is_key[:, None], other=0.0)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        top = new_top
    out = out / total[:, None]
    place = (group // G * tokens + token) * X + group % G * (X // G) + head
    _store_fp8(rows8 + place[:, None] * D + dim[None, :], out, inverse_scale, is_row[:, None])
