"""Triton kernels of `optim.kernels.split_attention`; imports Triton, so only where it is there."""

import triton
import triton.language as tl


@triton.jit
def partial_kernel(
    queries,
    prefix_keys,
    prefix_values,
    keys,
    values,
    bias,
    partial,
    lse,
    scale,
    rows,
    prefix,
    horizon,
    groups,
    splits,
    prefix_splits,
    HAS_BIAS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Softmax of one block of rows over one block of keys: its values and the log of its denominator."""
    split, row_block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if split < prefix_splits:
        key_base, value_base = prefix_keys + group * prefix * D, prefix_values + group * prefix * D
        count, start, first = prefix, split * BLOCK_KEYS, 0
    else:
        key_base, value_base = keys + group * horizon * D, values + group * horizon * D
        count, start, first = horizon, (split - prefix_splits) * BLOCK_KEYS, prefix
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    key = start + tl.arange(0, BLOCK_KEYS)
    dim = tl.arange(0, D)
    is_row, is_key = row < rows, key < count
    k = tl.load(key_base + key[:, None] * D + dim[None, :], mask=is_key[:, None], other=0.0)
    v = tl.load(value_base + key[:, None] * D + dim[None, :], mask=is_key[:, None], other=0.0)
    q = tl.load(queries + (group * rows + row)[:, None] * D + dim[None, :], mask=is_row[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k)) * scale
    if HAS_BIAS:
        at = bias + (group // groups) * (prefix + horizon) + first + key
        scores += tl.load(at, mask=is_key, other=0.0).to(tl.float32)[None, :]
    scores = tl.where(is_key[None, :], scores, float("-inf"))
    top = tl.max(scores, axis=1)
    weights = tl.exp(scores - top[:, None])
    total = tl.sum(weights, axis=1)
    out = tl.dot(weights.to(v.dtype), v) / total[:, None]
    at_row = (group * splits + split) * rows + row
    tl.store(partial + at_row[:, None] * D + dim[None, :], out, mask=is_row[:, None])
    tl.store(lse + at_row, top + tl.log(total), mask=is_row)


@triton.jit
def merge_kernel(
    partial,
    lse,
    attended,
    rows,
    horizon,
    heads,
    groups,
    splits,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Weigh the partial softmaxes of one row by their denominators, and write it for the projection."""
    row, group = tl.program_id(0), tl.program_id(1)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, D)
    at = (group * splits + split) * rows + row
    there = split < splits
    logs = tl.load(lse + at, mask=there, other=float("-inf"))
    weights = tl.exp(logs - tl.max(logs, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    parts = tl.load(partial + at[:, None] * D + dim[None, :], mask=there[:, None], other=0.0)
    out = tl.sum(parts * weights[:, None], axis=0)
    head = (group % groups) * (heads // groups) + row // horizon
    to = (((group // groups) * horizon + row % horizon) * heads + head) * D + dim
    tl.store(attended + to, out.to(attended.dtype.element_ty))
