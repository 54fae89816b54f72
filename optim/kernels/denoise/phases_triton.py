"""The denoise loop as one persistent Triton kernel; imports Triton, so only where it is there.

One program stays on each processor and works through the phases of every layer of every Euler step:
projection to queries, keys and values; attention of blocks of rows over blocks of keys; merging of those;
output projection; gate and up; down. A phase reads what all programs wrote in the one before, so between
phases every program counts itself in and waits for the others. Weights and the prefix are nobody's output:
before it waits, a program fetches its tile of a later phase into the L2 cache, and its keys and values into
registers.

A phase multiplies a few rows with a weight that is read once. A tile is N columns and the whole inner
dimension, of which each of SPLIT warps multiplies a part, because one chain of matrix instructions over all
of it would outlast the reading.

adaRMS is folded: with r = 1 / rms(x), (x r (1 + scale) + shift) V = r (x (1 + scale)) V + shift V, and the
last term depends on weights and t alone. Whoever writes x also writes x (1 + scale) of the norm that follows
and the sum of squares of its columns.

M rows of a block of the batch's, W width of the expert, K inner dimension of a weight, X query heads, D head
dimension, F width of the MLP, A action dimensions.
"""

import triton
import triton.language as tl

from optim.kernels.denoise.phases_parts import (
    ATTENTION_ROWS,
    arrive,
    await_all,
    load_prefix,
    load_squares,
    multiply,
    prefetch,
    write_stream,
)

ACTION_BLOCK = tl.constexpr(8)


@triton.jit
def _embed(
    actions, weight, bias, one_plus_scale, x, scaled, squares, rows,
    A: tl.constexpr, W: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """x = actions times weight + bias, float32."""
    for tile in tl.range(tl.program_id(0), W // N, tl.num_programs(0), num_stages=1):
        column, a = tile * N + tl.arange(0, N), tl.arange(0, A)
        block = tl.load(weight + column[None, :] * A + a[:, None])
        biases, scales = tl.load(bias + column), tl.load(one_plus_scale + column)
        for first_row in tl.range(0, rows, M, num_stages=1):
            row = first_row + tl.arange(0, M)
            noisy = tl.load(actions + row[:, None] * A + a[None, :], mask=(row < rows)[:, None], other=0.0)
            value = tl.dot(noisy, block, input_precision="ieee") + biases[None, :]
            write_stream(value, x, scaled, squares, scales, row, rows, tile, W, N)


@triton.jit
def _project(
    scaled, squares, weight, shifted, cos, sin, queries, keys, values, rows, horizon, eps,
    W: tl.constexpr, X: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    BLOCK_K: tl.constexpr, PARTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """adaRMS, projection to queries, keys and values, RoPE.

    Columns of `weight`: X heads of queries, one of keys, one of values; within each, dimension d is followed
    by d + D / 2, its partner in the rotation. Values are turned by no angle, to be written like the others.
    """
    for tile in tl.range(tl.program_id(0), (X + 2) * D // N, tl.num_programs(0), num_stages=1):
        column = tile * N + tl.arange(0, N)
        head = tile * N // D
        half = tile * N % D // 2 + tl.arange(0, N // 2)
        shift = tl.load(shifted + column)
        for first_row in tl.range(0, rows, M, num_stages=1):
            row = first_row + tl.arange(0, M)
            is_row = (row < rows)[:, None]
            at = row[:, None] * (D // 2) + half[None, :]
            c = tl.load(cos + at, mask=is_row & (head < X + 1), other=1.0)
            s = tl.load(sin + at, mask=is_row & (head < X + 1), other=0.0)
            parts = load_squares(squares, row, rows, PARTS)
            out = multiply(scaled, weight, first_row, rows, column, W, M, N, BLOCK_K, SPLIT)
            out = out * tl.rsqrt(tl.sum(parts, axis=1) / W + eps)[:, None] + shift[None, :]
            left, right = tl.split(tl.reshape(out, (M, N // 2, 2)))
            if head < X:
                to = queries + ((row // horizon * X + head) * horizon + row % horizon) * D
            else:
                to = (keys if head == X else values) + row * D
            to = to[:, None] + half[None, :]
            tl.store(to, (left * c - right * s).to(keys.dtype.element_ty), mask=is_row)
            tl.store(to + D // 2, (right * c + left * s).to(keys.dtype.element_ty), mask=is_row)


@triton.jit
def _attend(
    queries, keys, values, prefix_keys, prefix_values, bias, partial, lse, k, v,
    batch, horizon, prefix, splits, prefix_splits, score_scale,
    X: tl.constexpr, D: tl.constexpr, BLOCK_KEYS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Softmax of a block of rows over a block of keys: its values and the log of its denominator.

    All query heads share the keys, so that each is X further rows.
    """
    rows = X * horizon
    row_blocks = tl.cdiv(rows, ATTENTION_ROWS)
    dim = tl.arange(0, D)
    for tile in tl.range(tl.program_id(0), splits * row_blocks * batch, tl.num_programs(0), num_stages=1):
        split, sample = tile % splits, tile // (splits * row_blocks)
        row = tile // splits % row_blocks * ATTENTION_ROWS + tl.arange(0, ATTENTION_ROWS)
        is_row = row < rows
        q = tl.load(
            queries + (sample * rows + row)[:, None] * D + dim[None, :], mask=is_row[:, None], other=0.0
        )
        if split < prefix_splits:
            key = split * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
            is_key = key < prefix
            of_bias = key
        else:
            key = (split - prefix_splits) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
            is_key = key < horizon
            of_bias = prefix + key
            at_key = (sample * horizon + key)[:, None] * D + dim[None, :]
            k = tl.load(keys + at_key, mask=is_key[:, None], other=0.0)
            v = tl.load(values + at_key, mask=is_key[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * score_scale
        if HAS_BIAS:
            biases = tl.load(bias + sample * (prefix + horizon) + of_bias, mask=is_key, other=0.0)
            scores += biases.to(tl.float32)[None, :]
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        top = tl.max(scores, axis=1)
        weights = tl.exp(scores - top[:, None])
        total = tl.sum(weights, axis=1)
        out = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / total[:, None]
        at_row = (sample * splits + split) * rows + row
        tl.store(partial + at_row[:, None] * D + dim[None, :], out, mask=is_row[:, None])
        tl.store(lse + at_row, top + tl.log(total), mask=is_row)
        k, v = load_prefix(
            prefix_keys, prefix_values, tile + tl.num_programs(0),
            prefix, splits, prefix_splits, row_blocks, batch, D, BLOCK_KEYS,
        )  # fmt: skip


@triton.jit
def _merge(
    partial, lse, attended, batch, horizon, splits, X: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr
):
    """Weigh the partial softmaxes of each row by their denominators."""
    rows = X * horizon
    dim = tl.arange(0, D)
    for tile in tl.range(tl.program_id(0), rows * batch, tl.num_programs(0), num_stages=1):
        row, sample = tile % rows, tile // rows
        at = sample * splits * rows + row
        top = float("-inf")
        for split in tl.static_range(SPLITS):
            log = tl.load(lse + at + split * rows, mask=split < splits, other=float("-inf"))
            top = tl.maximum(top, log)
        total = 0.0
        merged = tl.zeros((D,), dtype=tl.float32)
        for split in tl.static_range(SPLITS):
            there = split < splits
            log = tl.load(lse + at + split * rows, mask=there, other=float("-inf"))
            part = tl.load(partial + (at + split * rows) * D + dim, mask=there, other=0.0)
            merged += part * tl.exp(log - top)
            total += tl.exp(log - top)
        to = attended + ((sample * horizon + row % horizon) * X + row // horizon) * D + dim
        tl.store(to, (merged / total).to(attended.dtype.element_ty))


@triton.jit
def _add(
    a, weight, gate, one_plus_scale, x, scaled, squares, rows,
    K: tl.constexpr, W: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """x += gate * (a times weight)."""
    for tile in tl.range(tl.program_id(0), W // N, tl.num_programs(0), num_stages=1):
        column = tile * N + tl.arange(0, N)
        gates, scales = tl.load(gate + column), tl.load(one_plus_scale + column)
        for first_row in tl.range(0, rows, M, num_stages=1):
            row = first_row + tl.arange(0, M)
            at = row[:, None] * W + column[None, :]
            before = tl.load(x + at, mask=(row < rows)[:, None], other=0.0)
            out = multiply(a, weight, first_row, rows, column, K, M, N, BLOCK_K, SPLIT)
            value = before + out * gates[None, :]
            write_stream(value, x, scaled, squares, scales, row, rows, tile, W, N)


@triton.jit
def _gate_up(
    scaled, squares, weight, shifted, hidden, rows, eps,
    W: tl.constexpr, F: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """adaRMS, gate and up projections, GEGLU; gate and up columns alternate in `weight`."""
    for tile in tl.range(tl.program_id(0), 2 * F // N, tl.num_programs(0), num_stages=1):
        column = tile * N + tl.arange(0, N)
        shift = tl.load(shifted + column)
        for first_row in tl.range(0, rows, M, num_stages=1):
            row = first_row + tl.arange(0, M)
            parts = load_squares(squares, row, rows, PARTS)
            out = multiply(scaled, weight, first_row, rows, column, W, M, N, BLOCK_K, SPLIT)
            out = out * tl.rsqrt(tl.sum(parts, axis=1) / W + eps)[:, None] + shift[None, :]
            gate, up = tl.split(tl.reshape(out, (M, N // 2, 2)))
            bend = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 sqrt(2 / pi)
            value = (gate * tl.sigmoid(bend) * up).to(hidden.dtype.element_ty)
            to = hidden + row[:, None] * F + (tile * (N // 2) + tl.arange(0, N // 2))[None, :]
            tl.store(to, value, mask=(row < rows)[:, None])


@triton.jit
def _euler(
    x, one_plus_scale, weight, shifted, actions, old, step, steps, rows, dt, eps,
    A: tl.constexpr, W: tl.constexpr, HAS_OLD: tl.constexpr,
):  # fmt: skip
    """actions += dt * velocity: final adaRMS, output projection, guidance, one Euler step, float32.

    `step` points to t of this step; the strength of its guidance comes `steps` numbers later.
    """
    BLOCKS: tl.constexpr = A // ACTION_BLOCK
    column = tl.arange(0, W)
    for tile in tl.range(tl.program_id(0), rows * BLOCKS, tl.num_programs(0), num_stages=1):
        row = tile // BLOCKS
        a = tile % BLOCKS * ACTION_BLOCK + tl.arange(0, ACTION_BLOCK)
        block = tl.load(weight + a[:, None] * W + column[None, :])
        value = tl.load(x + row * W + column)
        before = tl.load(actions + row * A + a)
        inverse_rms = tl.rsqrt(tl.sum(value * value, axis=0) / W + eps)
        value *= tl.load(one_plus_scale + column)
        velocity = tl.sum(block * value[None, :], axis=1) * inverse_rms + tl.load(shifted + a)
        if HAS_OLD:
            error = tl.load(old + row * A + a) - (before - tl.load(step) * velocity)
            velocity -= tl.load(step + steps) * tl.load(old + (rows + row) * A + a) * error
        tl.store(actions + row * A + a, before + dt * velocity)


@triton.jit
def denoise_kernel(
    actions, in_weight, in_bias, out_weight,
    one_plus_scale, gate, qkv_shift, gate_up_shift, out_shift,
    qkv_weight, output_weight, gate_up_weight, down_weight,
    cos, sin, prefix_keys, prefix_values, bias, old, guided_steps,
    x, scaled, squares, queries, keys, values, partial, lse, attended, hidden, counter,
    steps, layers, batch, horizon, prefix, splits, prefix_splits, dt, eps, score_scale,
    A: tl.constexpr, W: tl.constexpr, X: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    M: tl.constexpr, N_QKV: tl.constexpr, N_X: tl.constexpr, N_GATE_UP: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OLD: tl.constexpr,
):  # fmt: skip
    """actions: noise before, actions after; see the module."""
    QKV: tl.constexpr = (X + 2) * D
    PARTS: tl.constexpr = W // N_X
    program, programs = tl.program_id(0), tl.num_programs(0)
    one = tl.full((), 1, tl.int64)  # weights of all layers need 64 bits
    rows = batch * horizon
    row_blocks = tl.cdiv(X * horizon, ATTENTION_ROWS)
    arrivals = programs
    for step in tl.range(0, steps, num_stages=1):
        norm = step * (2 * layers + 1) * W
        _embed(actions, in_weight, in_bias, one_plus_scale + norm, x, scaled, squares, rows, A, W, M, N_X)
        arrive(counter)
        for layer in tl.range(0, layers, num_stages=1):
            at = layer * one
            layer_qkv, layer_output = qkv_weight + at * QKV * W, output_weight + at * W * X * D
            layer_gate_up, layer_down = gate_up_weight + at * 2 * F * W, down_weight + at * W * F
            layer_keys = prefix_keys + at * batch * prefix * D
            layer_values = prefix_values + at * batch * prefix * D
            of_step = step * layers + layer
            await_all(counter, arrivals)
            _project(
                scaled, squares, layer_qkv, qkv_shift + of_step * QKV,
                cos, sin, queries, keys, values, rows, horizon, eps,
                W, X, D, M, N_QKV, BLOCK_K, PARTS, SPLIT,
            )  # fmt: skip
            arrive(counter)
            k, v = load_prefix(
                layer_keys, layer_values, program,
                prefix, splits, prefix_splits, row_blocks, batch, D, BLOCK_KEYS,
            )  # fmt: skip
            if program < W // N_X:
                prefetch(layer_output, program * N_X * X * D, W * X * D, N_X * X * D)
            await_all(counter, arrivals + programs)
            _attend(
                queries, keys, values, layer_keys, layer_values, bias, partial, lse, k, v,
                batch, horizon, prefix, splits, prefix_splits, score_scale, X, D, BLOCK_KEYS, HAS_BIAS,
            )  # fmt: skip
            arrive(counter)
            if program < 2 * F // N_GATE_UP:
                prefetch(layer_gate_up, program * N_GATE_UP * W, 2 * F * W, N_GATE_UP * W)
            await_all(counter, arrivals + 2 * programs)
            _merge(partial, lse, attended, batch, horizon, splits, X, D, SPLITS)
            arrive(counter)
            if program < W // N_X:
                prefetch(layer_down, program * N_X * F, W * F, N_X * F)
            await_all(counter, arrivals + 3 * programs)
            _add(
                attended, layer_output, gate + norm, one_plus_scale + norm + W,
                x, scaled, squares, rows, X * D, W, M, N_X, BLOCK_K, SPLIT,
            )  # fmt: skip
            arrive(counter)
            await_all(counter, arrivals + 4 * programs)
            _gate_up(
                scaled, squares, layer_gate_up, gate_up_shift + of_step * 2 * F, hidden, rows, eps,
                W, F, M, N_GATE_UP, BLOCK_K, PARTS, SPLIT,
            )  # fmt: skip
            arrive(counter)
            following = (layer + 1) % layers * one
            if program < QKV // N_QKV:
                prefetch(qkv_weight + following * QKV * W, program * N_QKV * W, QKV * W, N_QKV * W)
            if program < prefix_splits * batch:
                ahead = (following * batch * prefix + program * BLOCK_KEYS) * D
                prefetch(prefix_keys, ahead, one * layers * batch * prefix * D, BLOCK_KEYS * D)
                prefetch(prefix_values, ahead, one * layers * batch * prefix * D, BLOCK_KEYS * D)
            await_all(counter, arrivals + 5 * programs)
            _add(
                hidden, layer_down, gate + norm + W, one_plus_scale + norm + 2 * W,
                x, scaled, squares, rows, F, W, M, N_X, BLOCK_K, SPLIT,
            )  # fmt: skip
            arrive(counter)
            arrivals += 6 * programs
            norm += 2 * W
        await_all(counter, arrivals)
        _euler(
            x, one_plus_scale + norm, out_weight, out_shift + step * A, actions,
            old, guided_steps + step, steps, rows, dt, eps, A, W, HAS_OLD,
        )  # fmt: skip
        arrive(counter)
        await_all(counter, arrivals + programs)
        arrivals += 2 * programs
