"""The denoise loop of up to 16 rows as one persistent Gluon kernel; imports Triton: only where it is there.

The phases of `phases_triton` with the weights of `ring_weights`, which Triton's pipeliner cannot express: it
ends its copies with the loop that they belong to.

W width of the expert, X query heads, D head dimension, F width of the MLP, A action dimensions.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from optim.kernels.denoise.ring_phases import (
    STAGED_VALUES,
    attend,
    embed,
    euler,
    inverse_norm,
    load_prefix,
    load_rope,
    load_squares,
    merge,
    normed,
    store_hidden,
    store_qkv,
    write_stream,
)
from optim.kernels.denoise.ring_weights import (
    ROWS,
    SLOT_LAYOUT,
    WARPS,
    arrive,
    await_all,
    fetch_chunk,
    load_left,
    multiply,
    prefetch,
    refill,
    row_column,
    sum_warps,
)


@gluon.jit
def denoise_kernel(
    actions, in_weight, in_bias, out_weight,
    one_plus_scale, gate, qkv_shift, gate_up_shift, out_shift,
    qkv_weight, output_weight, gate_up_weight, down_weight,
    cos, sin, prefix_keys, prefix_values, bias, old, guided_steps,
    x, scaled, squares, queries, keys, values, partial, lse, attended, hidden, counter,
    steps, layers, batch: gl.constexpr, horizon: gl.constexpr, prefix, splits: gl.constexpr,
    prefix_splits: gl.constexpr, dt, eps, score_scale,
    A: gl.constexpr, W: gl.constexpr, X: gl.constexpr, D: gl.constexpr, F: gl.constexpr,
    K_W: gl.constexpr, K_O: gl.constexpr, K_F: gl.constexpr, BLOCK_KEYS: gl.constexpr,
    HAS_BIAS: gl.constexpr, HAS_OLD: gl.constexpr, SLOT: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """actions: noise before, actions after; see the module."""
    QKV: gl.constexpr = (X + 2) * D
    XD: gl.constexpr = X * D
    PARTS: gl.constexpr = W // 16
    C_W: gl.constexpr = W // (WARPS * K_W)
    C_O: gl.constexpr = XD // (WARPS * K_O)
    C_F: gl.constexpr = F // (WARPS * K_F)
    SIZES: gl.constexpr = (W, XD, F, QKV, K_W, K_O, K_F)
    weights = (qkv_weight, output_weight, gate_up_weight, down_weight)
    program, programs = gl.program_id(0), gl.num_programs(0)
    last = programs - 1 - program
    rows: gl.constexpr = batch * horizon
    row_blocks: gl.constexpr = (X * horizon + ROWS - 1) // ROWS
    # who has no tile of a weight reads no rows for it
    qkv_rows = gl.where(program < QKV // 32, rows, 0)
    gate_up_rows = gl.where(program < 2 * F // 64, rows, 0)
    my_rows = gl.where(last < W // 16, rows, 0)
    ring = gl.allocate_shared_memory(gl.bfloat16, [RING, SLOT // 64, 64], SLOT_LAYOUT)
    head = 0
    arrivals = programs
    for chunk in gl.static_range(RING):
        fetch_chunk(chunk, 0, layers, ring, chunk, weights, program, programs, SIZES, RING)
    for step in range(steps):
        norm = step * (2 * layers + 1) * W
        embed(
            actions, in_weight, in_bias, one_plus_scale + norm, x, scaled, squares,
            rows, program, programs, A, W,
        )  # fmt: skip
        arrive(counter)
        for layer in range(layers):
            at = gl.to_tensor(layer).to(gl.int64)
            of_step = step * layers + layer
            # Queries, keys, values.
            column = row_column(program * 32, 32)[1]
            shift = gl.load(qkv_shift + of_step * QKV + column, mask=column < QKV, other=0.0)
            c, s = load_rope(cos, sin, program * 32, rows, X, D)
            await_all(counter, arrivals)
            parts = load_squares(squares, rows, PARTS)
            left = load_left(scaled, qkv_rows, W, K_W)
            inverse_rms = inverse_norm(parts, eps, W)
            total, _ = multiply(left, ring, head, K_W, 32, False, RING)
            out = normed(sum_warps(total, 32), inverse_rms, shift)
            if program < QKV // 32:
                store_qkv(out, c, s, queries, keys, values, program * 32, horizon, rows, X, D)
            arrive(counter)
            head = refill(0, C_W, layer, layers, ring, head, weights, program, programs, SIZES, RING)
            layer_keys = prefix_keys + at * batch * prefix * D
            layer_values = prefix_values + at * batch * prefix * D
            staged_values = gl.allocate_shared_memory(gl.bfloat16, [BLOCK_KEYS, D], STAGED_VALUES)
            k = load_prefix(
                layer_keys, layer_values, staged_values, program, prefix, splits, prefix_splits, row_blocks,
                batch, D, BLOCK_KEYS,
            )  # fmt: skip
            await_all(counter, arrivals + programs)
            attend(
                queries, keys, values, layer_keys, layer_values, bias, partial, lse, staged_values, k,
                program, programs, batch, horizon, prefix, splits, prefix_splits, score_scale,
                X, D, BLOCK_KEYS, HAS_BIAS,
            )  # fmt: skip
            arrive(counter)
            await_all(counter, arrivals + 2 * programs)
            merge(partial, lse, attended, program, programs, batch, horizon, splits, X, D)
            arrive(counter)
            row, column = row_column(last * 16, 16)
            inside = column < W
            gates = gl.load(gate + norm + column, mask=inside, other=0.0)
            scales = gl.load(one_plus_scale + norm + W + column, mask=inside, other=0.0)
            is_mine = (row < rows)[:, None] & inside[None, :]
            await_all(counter, arrivals + 3 * programs)
            before = gl.load(x + row[:, None] * W + column[None, :], mask=is_mine, other=0.0)
            left = load_left(attended, my_rows, XD, K_O)
            total, _ = multiply(left, ring, head, K_O, 16, False, RING)
            value = before + sum_warps(total, 16) * gates[None, :]
            if last < W // 16:
                write_stream(value, x, scaled, squares, scales, row, column, rows, last, W)
            arrive(counter)
            head = refill(C_W, C_O, layer, layers, ring, head, weights, program, programs, SIZES, RING)
            # Gate and up.
            column = row_column(program * 64, 32)[1]
            shifts = gate_up_shift + of_step * 2 * F
            shift = gl.load(shifts + column, mask=column < 2 * F, other=0.0)
            shift2 = gl.load(shifts + column + 32, mask=column < 2 * F, other=0.0)
            await_all(counter, arrivals + 4 * programs)
            parts = load_squares(squares, rows, PARTS)
            left = load_left(scaled, gate_up_rows, W, K_W)
            inverse_rms = inverse_norm(parts, eps, W)
            total, total2 = multiply(left, ring, head, K_W, 32, True, RING)
            out = normed(sum_warps(total, 32), inverse_rms, shift)
            out2 = normed(sum_warps(total2, 32), inverse_rms, shift2)
            if program < 2 * F // 64:
                store_hidden(out, hidden, program * 32, rows, F)
                store_hidden(out2, hidden, program * 32 + 16, rows, F)
            arrive(counter)
            head = refill(
                C_W + C_O, 2 * C_W, layer, layers, ring, head, weights, program, programs, SIZES, RING
            )
            row, column = row_column(last * 16, 16)
            gates = gl.load(gate + norm + W + column, mask=inside, other=0.0)
            scales = gl.load(one_plus_scale + norm + 2 * W + column, mask=inside, other=0.0)
            before = gl.load(x + row[:, None] * W + column[None, :], mask=is_mine, other=0.0)
            following = (at + 1) % layers
            if program < prefix_splits * batch:
                ahead = (following * batch * prefix + program * BLOCK_KEYS) * D
                end = gl.to_tensor(layers).to(gl.int64) * batch * prefix * D
                prefetch(prefix_keys, ahead, end, BLOCK_KEYS * D)
                prefetch(prefix_values, ahead, end, BLOCK_KEYS * D)
            await_all(counter, arrivals + 5 * programs)
            left = load_left(hidden, my_rows, F, K_F)
            total, _ = multiply(left, ring, head, K_F, 16, False, RING)
            value = before + sum_warps(total, 16) * gates[None, :]
            if last < W // 16:
                write_stream(value, x, scaled, squares, scales, row, column, rows, last, W)
            arrive(counter)
            head = refill(
                3 * C_W + C_O, C_F, layer, layers, ring, head, weights, program, programs, SIZES, RING
            )
            arrivals += 6 * programs
            norm += 2 * W
        await_all(counter, arrivals)
        euler(
            x, one_plus_scale + norm, out_weight, out_shift + step * A, actions,
            old, guided_steps + step, steps, rows, dt, eps, program, programs, A, W, HAS_OLD,
        )  # fmt: skip
        arrive(counter)
        await_all(counter, arrivals + programs)
        arrivals += 2 * programs
    async_copy.wait_group(0)
