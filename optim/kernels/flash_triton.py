"""Triton kernels of `optim.kernels.flash`; imports Triton, so only where it is there."""

import triton
import triton.language as tl

from optim.kernels.rows_triton import store_fp8


@triton.jit
def _absorb(scores, v, top, total, out):
    """Take one block of keys into a running softmax: its maximum, its denominator and its sum of values."""
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    weights = tl.exp(scores - new_top[:, None])
    shrink = tl.exp(top - new_top)
    total = total * shrink + tl.sum(weights, axis=1)
    out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
    return new_top, total, out


@triton.jit
def flash_kernel(
    queries,
    keys,
    values,
    bias,
    partial,
    tops,
    totals,
    scale,
    tokens,
    split_keys,
    X: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Attention of all tokens to one part of them, to partial (splits, groups, rows, D).

    Each row's maximum score and denominator go to tops and totals (splits, groups, rows).
    The query heads of one KV head are further rows of it, so its keys are read once for all of them.
    """
    group, split = tl.program_id(1), tl.program_id(2)
    rows = X // G * tokens
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    dim = tl.arange(0, D)
    q = tl.load(queries + (group * rows + row)[:, None] * D + dim[None, :], mask=is_row[:, None], other=0.0)
    top = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    out = tl.zeros((BLOCK_ROWS, D), dtype=tl.float32)
    for start in range(split * split_keys, min(tokens, (split + 1) * split_keys), BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        is_key = key < tokens
        at = (group * tokens + key)[:, None] * D + dim[None, :]
        k = tl.load(keys + at, mask=is_key[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        if HAS_BIAS:
            place = (group // G * tokens + row % tokens)[:, None] * tokens + key[None, :]
            visible = is_row[:, None] & is_key[None, :]
            scores += tl.load(bias + place, mask=visible, other=0.0).to(tl.float32)
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        v = tl.load(values + at, mask=is_key[:, None], other=0.0)
        top, total, out = _absorb(scores, v, top, total, out)
    at = (split * tl.num_programs(1) + group) * rows + row
    to = partial + at[:, None] * D + dim[None, :]
    tl.store(to, (out / total[:, None]).to(partial.dtype.element_ty), mask=is_row[:, None])
    tl.store(tops + at, top, mask=is_row)
    tl.store(totals + at, total, mask=is_row)


@triton.jit
def merge_kernel(
    partial,
    tops,
    totals,
    inverse_scale,
    rows8,
    tokens,
    X: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Weigh the parts of `flash_kernel` by maxima and denominators, to FP8 rows (batch, tokens, X, D)."""
    group, groups = tl.program_id(1), tl.num_programs(1)
    rows = X // G * tokens
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    dim = tl.arange(0, D)
    top = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        top = tl.maximum(top, tl.load(tops + (split * groups + group) * rows + row, mask=is_row, other=0.0))
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    out = tl.zeros((BLOCK_ROWS, D), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        at = (split * groups + group) * rows + row
        share = tl.exp(tl.load(tops + at, mask=is_row, other=0.0) - top)
        share *= tl.load(totals + at, mask=is_row, other=1.0)
        part = tl.load(partial + at[:, None] * D + dim[None, :], mask=is_row[:, None], other=0.0)
        out += part.to(tl.float32) * share[:, None]
        total += share
    token, head = row % tokens, row // tokens
    place = (group // G * tokens + token) * X + group % G * (X // G) + head
    store_fp8(rows8 + place[:, None] * D + dim[None, :], out / total[:, None], inverse_scale, is_row[:, None])


@triton.jit
def image_kernel(
    qkv,
    inverse_scale,
    rows8,
    scale,
    tokens,
    X: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One head's attention within an image, of BLOCK_ROWS of its tokens, to FP8 rows (images, tokens, X, D).

    A row of qkv holds X heads of queries, X of keys, X of values. D need not be a power of two.
    """
    first = tl.program_id(2) * tokens
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    dim = tl.arange(0, BLOCK_D)
    is_row, is_dim = (row < tokens)[:, None], (dim < D)[None, :]
    column = tl.program_id(1) * D + dim[None, :]
    q = tl.load(qkv + (first + row)[:, None] * (3 * X * D) + column, mask=is_row & is_dim, other=0.0)
    top = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    out = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        is_key = key < tokens
        at = qkv + (first + key)[:, None] * (3 * X * D) + column
        k = tl.load(at + X * D, mask=is_key[:, None] & is_dim, other=0.0)
        scores = tl.where(is_key[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        v = tl.load(at + 2 * X * D, mask=is_key[:, None] & is_dim, other=0.0)
        top, total, out = _absorb(scores, v, top, total, out)
    to = rows8 + (first + row)[:, None] * (X * D) + column
    store_fp8(to, out / total[:, None], inverse_scale, is_row & is_dim)
