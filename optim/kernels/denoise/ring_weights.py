"""Weights in a ring of shared memory that goes on across the phases of `optim.kernels.denoise.ring_gluon`.

The ring has RING slots, each for one chunk: some of K of a tile, that is of a program's columns of a weight.
Chunks come in a fixed order: those of qkv, of the output projection, of gate and up, of down, then the next
layer's. When a phase has read its chunks and its program has arrived at the barrier, the chunks RING later
are fetched into their slots, so a processor reads while it waits, attends and merges. Every program goes
through all chunks; one without a tile of a weight fetches nothing into its slots.

Operands of the matrix instructions are read 16 bytes at a time: with a width of 8, each instruction takes
other values of K than the usual ones, but the same ones from both sides.

W width of the expert, K inner dimension of a weight, N columns of a tile, XD width of the attention, F width
of the MLP; 8 warps, each with a part of every step of K.
"""

import math

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from optim.kernels.denoise import ring_layout as host
from optim.kernels.sync import ARRIVE, AWAIT, PREFETCH

barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # before and since Triton 3.7

if (host.COLUMNS, host.X_COLUMNS, host.RUN) != (32, 16, 32):
    raise RuntimeError("the kernels' tiles are 32 and 16 columns, of runs of 32; change both")
ROWS = gl.constexpr(host.ROWS)
WARPS = gl.constexpr(host.WARPS)
MMA = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [8, 1, 1], [1, 16, 8]))
LEFT = gl.constexpr(gl.DotOperandLayout(0, MMA.value, 8))
RIGHT = gl.constexpr(gl.DotOperandLayout(1, MMA.value, 8))
# two neighbouring columns, read by one quarter of a warp, lie in different banks
STAGED = gl.constexpr(gl.SwizzledSharedLayout(32, 1, 2, [1, 2, 0]))
STAGED_SHORT = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 1, [1, 2, 0]))
COPY = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0]))
SLOT_LAYOUT = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
LINE = gl.constexpr(gl.BlockedLayout([1], [32], [8], [0]))


@gluon.constexpr_function
def _tiled(slot, shape):
    """As many tiles of a shape as a slot holds."""
    return [slot // math.prod(shape), *shape]


@gluon.jit
def arrive(counter):
    """Count this program in; what it wrote is there for those who wait."""
    barrier()
    gl.inline_asm_elementwise(
        ARRIVE,
        "=r,l",
        [counter],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def await_all(counter, arrivals):
    """Wait until so many programs have counted themselves in."""
    gl.inline_asm_elementwise(
        AWAIT,
        "=r,l,r",
        [counter, arrivals],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )
    barrier()


@gluon.jit
def prefetch(base, first, end, COUNT: gl.constexpr):
    """Fetch COUNT contiguous elements of two bytes, or those before `end`, into the L2 cache."""
    PER: gl.constexpr = 64
    at = gl.minimum(first + gl.arange(0, COUNT // PER, LINE) * PER, end - 1)
    gl.inline_asm_elementwise(
        PREFETCH,
        "=r,l",
        [base + at],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _slot(ring, position, RING: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
    """The beginning of a slot of the ring, `position` of them after the first, in a shape."""
    SLOT: gl.constexpr = ring.shape[1] * ring.shape[2]
    wrapped = gl.where(position < RING, position, position - RING)
    return ring.index(wrapped)._reinterpret(gl.bfloat16, _tiled(SLOT, SHAPE), LAYOUT).index(0)


@gluon.jit
def _fetch(ring, position, chunk, there, COUNT: gl.constexpr, RING: gl.constexpr):
    """Start copying a chunk into a slot of the ring."""
    slot = _slot(ring, position, RING, [COUNT // 64, 64], SLOT_LAYOUT)
    line = gl.arange(0, COUNT // 64, gl.SliceLayout(1, COPY))[:, None]
    of_line = gl.arange(0, 64, gl.SliceLayout(0, COPY))[None, :]
    if there:
        async_copy.async_copy_global_to_shared(slot, chunk + line * 64 + of_line)


@gluon.jit
def fetch_chunk(
    CHUNK: gl.constexpr, layer, layers, ring, position, weights, program, programs,
    SIZES: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Fetch chunk CHUNK of a layer (or of the next, if CHUNK is past its end) into a slot of the ring.

    SIZES are W, XD, F, columns of qkv, and the steps of K that a warp takes of each of W, XD and F.
    """
    W: gl.constexpr = SIZES[0]
    XD: gl.constexpr = SIZES[1]
    F: gl.constexpr = SIZES[2]
    QKV: gl.constexpr = SIZES[3]
    K_W: gl.constexpr = SIZES[4]
    K_O: gl.constexpr = SIZES[5]
    K_F: gl.constexpr = SIZES[6]
    qkv_weight, output_weight, gate_up_weight, down_weight = weights
    C_W: gl.constexpr = W // (WARPS * K_W)
    C_O: gl.constexpr = XD // (WARPS * K_O)
    C_F: gl.constexpr = F // (WARPS * K_F)
    CHUNKS: gl.constexpr = 3 * C_W + C_O + C_F
    HERE: gl.constexpr = CHUNK % CHUNKS
    at = gl.to_tensor((layer + CHUNK // CHUNKS) % layers).to(gl.int64)
    last = programs - 1 - program  # output projection and down are done by the last programs
    if HERE < C_W:
        chunk = qkv_weight + (at * (QKV // 32) + program) * 32 * W + HERE * WARPS * K_W * 32
        _fetch(ring, position, chunk, program < QKV // 32, WARPS * K_W * 32, RING)
    elif HERE < C_W + C_O:
        chunk = output_weight + (at * (W // 16) + last) * 16 * XD + (HERE - C_W) * WARPS * K_O * 16
        _fetch(ring, position, chunk, last < W // 16, WARPS * K_O * 16, RING)
    elif HERE < 3 * C_W + C_O:
        chunk = gate_up_weight + (at * (F // 32) + program) * 64 * W + (HERE - C_W - C_O) * WARPS * K_W * 32
        _fetch(ring, position, chunk, program < F // 32, WARPS * K_W * 32, RING)
    else:
        chunk = down_weight + (at * (W // 16) + last) * 16 * F + (HERE - 3 * C_W - C_O) * WARPS * K_F * 16
        _fetch(ring, position, chunk, last < W // 16, WARPS * K_F * 16, RING)
    async_copy.commit_group()


@gluon.jit
def refill(
    FIRST: gl.constexpr, COUNT: gl.constexpr, layer, layers, ring, head, weights, program, programs,
    SIZES: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Fetch what comes RING chunks after COUNT chunks from FIRST, which were consumed, into their slots.

    Returns:
        The ring's new head.
    """
    for i in gl.static_range(COUNT):
        fetch_chunk(FIRST + RING + i, layer, layers, ring, head + i, weights, program, programs, SIZES, RING)
    head += COUNT
    return gl.where(head < RING, head, head - RING)


@gluon.jit
def load_left(a, rows, K: gl.constexpr, BLOCK_K: gl.constexpr):
    """All rows of a as left operands, one for each chunk or pair of chunks."""
    left = ()
    for i in gl.static_range(K // (WARPS * BLOCK_K)):
        left += (_left_operand(a, i * WARPS * BLOCK_K, rows, K, BLOCK_K),)  # type: ignore[assignment]
    return left


@gluon.jit
def _left_operand(a, k, rows, K: gl.constexpr, BLOCK_K: gl.constexpr):
    """8 BLOCK_K of K from `k` of all rows of a, as a left operand (8, ROWS, BLOCK_K)."""
    part = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, LEFT)))
    row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(2, LEFT)))
    inner = gl.arange(0, BLOCK_K, gl.SliceLayout(0, gl.SliceLayout(1, LEFT)))
    row3 = gl.expand_dims(gl.expand_dims(row, 0), 2)
    at = row3 * K + k + gl.expand_dims(gl.expand_dims(part, 1), 2) * BLOCK_K
    at += gl.expand_dims(gl.expand_dims(inner, 0), 1)
    return gl.load(a + at, mask=row3 < rows, other=0.0)


@gluon.jit
def right_operand(
    ring, head, AFTER: gl.constexpr, N: gl.constexpr, BLOCK_K: gl.constexpr, RING: gl.constexpr
):
    """The chunk AFTER the ring's oldest as a right operand; waits for it."""
    async_copy.wait_group(RING - 1 - AFTER)
    LAYOUT: gl.constexpr = STAGED if BLOCK_K >= 64 else STAGED_SHORT
    return _slot(ring, head + AFTER, RING, [WARPS, BLOCK_K, N], LAYOUT).load(RIGHT)


@gluon.constexpr_function
def summed_layout(columns):
    """Layout of what `sum_warps` returns."""
    return gl.SliceLayout(0, gl.BlockedLayout([8, 1, columns // 16], [1, 2, 16], [1, 8, 1], [2, 1, 0]))


@gluon.jit
def sum_warps(total, N: gl.constexpr):
    """The sum over warps of (8, ROWS, N), as (ROWS, N)."""
    layout: gl.constexpr = summed_layout(N)
    return gl.sum(gl.convert_layout(total, layout.parent), 0)


@gluon.jit
def row_column(first, N: gl.constexpr):
    """Rows, and columns from `first`, of what `sum_warps` returns."""
    layout: gl.constexpr = summed_layout(N)
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    return row, first + gl.arange(0, N, gl.SliceLayout(0, layout))


@gluon.jit
def multiply(
    left, ring, head, BLOCK_K: gl.constexpr, N: gl.constexpr, PAIR: gl.constexpr, RING: gl.constexpr
):
    """What `load_left` gave times the tile, or the PAIR of tiles, of the oldest chunks; for `sum_warps`.

    Returns:
        Both products, of which the second is zero without a PAIR.
    """
    CHUNKS: gl.constexpr = len(left)
    total = gl.full([WARPS, ROWS, N], 0.0, gl.float32, MMA)
    other = total
    for i in gl.static_range(CHUNKS):
        total = mma_v2(left[i], right_operand(ring, head, i * (1 + PAIR), N, BLOCK_K, RING), total)
        if PAIR:
            other = mma_v2(left[i], right_operand(ring, head, i * 2 + 1, N, BLOCK_K, RING), other)
    return total, other
