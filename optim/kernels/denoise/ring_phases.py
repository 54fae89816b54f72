"""Phases of `ring_gluon` but for their matmuls: what comes before and after, and attention.

W width of the expert, X query heads, D head dimension, F width of the MLP, A action dimensions.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from optim.kernels.denoise.ring_weights import LINE, ROWS, row_column, summed_layout

FLAT = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [1, 8], [16, 8]))
STAGED_VALUES = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 8, [1, 0]))
HALF = gl.constexpr(gl.BlockedLayout([1, 1], [2, 16], [8, 1], [1, 0]))


@gluon.jit
def load_squares(squares, rows, PARTS: gl.constexpr):
    """Sums of squares of the parts of each row."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [8, 1], [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))[:, None]
    part = gl.arange(0, PARTS, gl.SliceLayout(0, layout))[None, :]
    return gl.load(squares + row * PARTS + part, mask=row < rows, other=0.0)


@gluon.jit
def inverse_norm(parts, eps, W: gl.constexpr):
    """1 / RMS of each row, from the sums of squares of its parts; for `normed`."""
    inverse_rms = gl.rsqrt(gl.sum(parts, 1) / W + eps)
    return gl.convert_layout(inverse_rms, gl.SliceLayout(1, summed_layout(32)))


@gluon.jit
def normed(out, inverse_rms, shift):
    """What a norm's matmul gives, from its sums: adaRMS is folded (`optim.kernels.denoise.phases_triton`)."""
    return out * inverse_rms[:, None] + shift[None, :]


@gluon.jit
def write_stream(value, x, scaled, squares, scales, row, column, rows, tile, W: gl.constexpr):
    """Write a tile of the residual stream, and what the next norm needs of it."""
    at = row[:, None] * W + column[None, :]
    is_row = row < rows
    gl.store(x + at, value, mask=is_row[:, None])
    gl.store(scaled + at, (value * scales[None, :]).to(scaled.dtype.element_ty), mask=is_row[:, None])
    gl.store(squares + row * (W // 16) + tile, gl.sum(value * value, 1), mask=is_row)


@gluon.jit
def load_rope(cos, sin, first_column, rows, X: gl.constexpr, D: gl.constexpr):
    """Cosines and sines of the pairs of a tile of qkv; values are turned by no angle."""
    row = gl.arange(0, ROWS, gl.SliceLayout(1, HALF))[:, None]
    half = first_column % D // 2 + gl.arange(0, 16, gl.SliceLayout(0, HALF))[None, :]
    there = (row < rows) & (first_column // D < X + 1)
    at = row * (D // 2) + half
    return gl.load(cos + at, mask=there, other=1.0), gl.load(sin + at, mask=there, other=0.0)


@gluon.jit
def _split_pairs(out):
    """Columns 0, 2, 4, ... and 1, 3, 5, ... of (ROWS, 32)."""
    first, second = gl.split(gl.reshape(out, [ROWS, 16, 2]))
    return gl.convert_layout(first, HALF), gl.convert_layout(second, HALF)


@gluon.jit
def store_qkv(
    out, c, s, queries, keys, values, first_column, horizon, rows, X: gl.constexpr, D: gl.constexpr
):
    """Turn pairs of columns, and write them where their head belongs."""
    head = first_column // D
    row = gl.arange(0, ROWS, gl.SliceLayout(1, HALF))
    half = first_column % D // 2 + gl.arange(0, 16, gl.SliceLayout(0, HALF))
    first, second = _split_pairs(out)
    if head < X:
        to = queries + ((row // horizon * X + head) * horizon + row % horizon) * D
    elif head == X:
        to = keys + row * D
    else:
        to = values + row * D
    to = to[:, None] + half[None, :]
    is_row = (row < rows)[:, None]
    gl.store(to, (first * c - second * s).to(keys.dtype.element_ty), mask=is_row)
    gl.store(to + D // 2, (second * c + first * s).to(keys.dtype.element_ty), mask=is_row)


@gluon.jit
def store_hidden(out, hidden, first_column, rows, F: gl.constexpr):
    """GEGLU of pairs of gate and up."""
    gate, up = _split_pairs(out)
    bend = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 sqrt(2 / pi)
    row = gl.arange(0, ROWS, gl.SliceLayout(1, HALF))[:, None]
    at = row * F + first_column + gl.arange(0, 16, gl.SliceLayout(0, HALF))[None, :]
    value = gate / (1.0 + gl.exp(-bend)) * up
    gl.store(hidden + at, value.to(hidden.dtype.element_ty), mask=row < rows)


@gluon.jit
def embed(
    actions, weight, bias, one_plus_scale, x, scaled, squares, rows, program, programs,
    A: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """x = actions times weight + bias, float32."""
    for tile in range(program, W // 16, programs):
        row, column = row_column(tile * 16, 16)
        value = gl.load(bias + column)[None, :]
        scales = gl.load(one_plus_scale + column)
        for a in gl.static_range(A):
            noisy = gl.load(actions + row * A + a, mask=row < rows, other=0.0)
            value += noisy[:, None] * gl.load(weight + column * A + a)[None, :]
        write_stream(value, x, scaled, squares, scales, row, column, rows, tile, W)


@gluon.jit
def load_prefix(
    keys, values, staged_values, tile, prefix, splits, prefix_splits, row_blocks, batch,
    D: gl.constexpr, BLOCK_KEYS: gl.constexpr,
):  # fmt: skip
    """Keys of a tile of the attention, and values into `staged_values`, if they are the prefix's."""
    split, sample = tile % splits, tile // (splits * row_blocks)
    there = (split < prefix_splits) & (sample < batch)
    return _load_keys(
        keys + sample * prefix * D, values + sample * prefix * D, staged_values, split * BLOCK_KEYS, prefix,
        there, D, BLOCK_KEYS,
    )  # fmt: skip


@gluon.jit
def _load_keys(keys, values, staged_values, first, count, there, D: gl.constexpr, BLOCK_KEYS: gl.constexpr):
    """A block of keys as a right operand (D, keys); its values (keys, D) go to `staged_values`."""
    operand: gl.constexpr = gl.DotOperandLayout(1, FLAT, 8)
    key = first + gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, operand))[None, :]
    dim = gl.arange(0, D, gl.SliceLayout(1, operand))[:, None]
    k = gl.load(keys + key * D + dim, mask=(key < count) & there, other=0.0)
    rows: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // D, D // 8], [8, 1], [1, 0])
    key = first + gl.arange(0, BLOCK_KEYS, gl.SliceLayout(1, rows))[:, None]
    dim = gl.arange(0, D, gl.SliceLayout(0, rows))[None, :]
    if there:
        staged_values.store(gl.load(values + key * D + dim, mask=key < count, other=0.0))
    return k


@gluon.jit
def attend(
    queries, keys, values, prefix_keys, prefix_values, bias, partial, lse, staged_values, k,
    program, programs, batch, horizon, prefix, splits, prefix_splits, score_scale,
    X: gl.constexpr, D: gl.constexpr, BLOCK_KEYS: gl.constexpr, HAS_BIAS: gl.constexpr,
):  # fmt: skip
    """Softmax of a block of rows over a block of keys: its values and the log of its denominator."""
    rows = X * horizon
    row_blocks = gl.cdiv(rows, ROWS)
    left: gl.constexpr = gl.DotOperandLayout(0, FLAT, 8)
    short_left: gl.constexpr = gl.DotOperandLayout(0, FLAT, 2)
    short_right: gl.constexpr = gl.DotOperandLayout(1, FLAT, 2)
    for tile in range(program, splits * row_blocks * batch, programs):
        split, sample = tile % splits, tile // (splits * row_blocks)
        first_row = tile // splits % row_blocks * ROWS
        row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, left))[:, None]
        dim = gl.arange(0, D, gl.SliceLayout(0, left))[None, :]
        q = gl.load(queries + (sample * rows + row) * D + dim, mask=row < rows, other=0.0)
        key = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, FLAT))
        if split < prefix_splits:
            key += split * BLOCK_KEYS
            is_key = key < prefix
        else:
            first = (split - prefix_splits) * BLOCK_KEYS
            k = _load_keys(
                keys + sample * horizon * D, values + sample * horizon * D, staged_values, first, horizon,
                True, D, BLOCK_KEYS,
            )  # fmt: skip
            key += first
            is_key = key < horizon
            key += prefix
        scores = mma_v2(q, k, gl.full([ROWS, BLOCK_KEYS], 0.0, gl.float32, FLAT)) * score_scale
        if HAS_BIAS:
            biases = gl.load(bias + sample * (prefix + horizon) + key, mask=is_key, other=0.0)
            scores += biases.to(gl.float32)[None, :]
        scores = gl.where(is_key[None, :], scores, float("-inf"))
        top = gl.max(scores, 1)
        weights = gl.exp(scores - top[:, None])
        total = gl.sum(weights, 1)
        weights = gl.convert_layout(weights.to(k.dtype), short_left)
        out = mma_v2(weights, staged_values.load(short_right), gl.full([ROWS, D], 0.0, gl.float32, FLAT))
        row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, FLAT))
        at = (sample * splits + split) * rows + row
        dim = gl.arange(0, D, gl.SliceLayout(0, FLAT))
        gl.store(partial + at[:, None] * D + dim[None, :], out / total[:, None], mask=(row < rows)[:, None])
        gl.store(lse + at, top + gl.log(total), mask=row < rows)
        k = load_prefix(
            prefix_keys, prefix_values, staged_values, tile + programs, prefix, splits, prefix_splits,
            row_blocks, batch, D, BLOCK_KEYS,
        )  # fmt: skip


@gluon.jit
def merge(
    partial, lse, attended, program, programs, batch, horizon, splits: gl.constexpr,
    X: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Weigh the partial softmaxes of each row by their denominators."""
    rows = X * horizon
    dim = gl.arange(0, D, LINE)
    for tile in range(program, rows * batch, programs):
        row, sample = tile % rows, tile // rows
        at = sample * splits * rows + row
        top = float("-inf")
        for split in gl.static_range(splits):
            top = gl.maximum(top, gl.load(lse + at + split * rows))
        total = 0.0
        merged = gl.full([D], 0.0, gl.float32, LINE)
        for split in gl.static_range(splits):
            share = gl.exp(gl.load(lse + at + split * rows) - top)
            merged += gl.load(partial + (at + split * rows) * D + dim) * share
            total += share
        to = attended + ((sample * horizon + row % horizon) * X + row // horizon) * D + dim
        gl.store(to, (merged / total).to(attended.dtype.element_ty))


@gluon.jit
def euler(
    x, one_plus_scale, weight, shifted, actions, old, step, steps, rows, dt, eps, program, programs,
    A: gl.constexpr, W: gl.constexpr, HAS_OLD: gl.constexpr,
):  # fmt: skip
    """actions += dt * velocity: final adaRMS, output projection, guidance, one Euler step, float32.

    `step` points to t of this step; the strength of its guidance comes `steps` numbers later.
    """
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [8, 1], [1, 0])
    column = gl.arange(0, W, gl.SliceLayout(0, layout))
    for tile in range(program, rows * (A // 8), programs):
        row = tile // (A // 8)
        a = tile % (A // 8) * 8 + gl.arange(0, 8, gl.SliceLayout(1, layout))
        block = gl.load(weight + a[:, None] * W + column[None, :])
        value = gl.load(x + row * W + column)
        before = gl.load(actions + row * A + a)
        scale = gl.load(one_plus_scale + column)
        shift = gl.load(shifted + a)
        inverse_rms = gl.rsqrt(gl.sum(value * value, 0) / W + eps)
        velocity = gl.sum(block * (value * scale)[None, :], 1) * inverse_rms + shift
        if HAS_OLD:
            error = gl.load(old + row * A + a) - (before - gl.load(step) * velocity)
            velocity -= gl.load(step + steps) * gl.load(old + (rows + row) * A + a) * error
        gl.store(actions + row * A + a, before + dt * velocity)
