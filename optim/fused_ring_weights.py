"""Weights in a ring of shared memory that goes on across the phases of `optim.fused_ring_kernel`.

A program's weights come in a fixed order, one slot after the other: its columns of qkv, of the output
projection, of gate and up, of down, then the next layer's. As soon as a slot is consumed, the one RING places
later is fetched to its place, so a processor reads while it attends, merges and waits. Every program goes
through all slots; one without a tile of a weight fetches nothing into its slots.

Operands of the matrix instructions are read 16 bytes at a time: with a width of 8, each instruction takes
other values of K than the usual ones, but the same ones from both sides.

W width of the expert, K inner dimension of a weight, N columns of a tile, XD width of the attention, F width
of the MLP; 8 warps, each with a part of every step of K.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from optim.fused_sync import ARRIVE, AWAIT, PREFETCH

barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # before and since Triton 3.7

ROWS = gl.constexpr(16)
WARPS = gl.constexpr(8)
MMA = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [8, 1, 1], [1, 16, 8]))
LEFT = gl.constexpr(gl.DotOperandLayout(0, MMA.value, 8))
RIGHT = gl.constexpr(gl.DotOperandLayout(1, MMA.value, 8))
# two neighbouring columns, read by one quarter of a warp, lie in different banks
STAGED = gl.constexpr(gl.SwizzledSharedLayout(32, 1, 2, [1, 2, 0]))
STAGED_SHORT = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 1, [1, 2, 0]))
COPY = gl.constexpr(gl.BlockedLayout([1, 8, 1], [1, 8, 4], [8, 1, 1], [1, 2, 0]))
COPY_SHORT = gl.constexpr(gl.BlockedLayout([1, 8, 1], [1, 4, 8], [8, 1, 1], [1, 2, 0]))
LINE = gl.constexpr(gl.BlockedLayout([1], [32], [8], [0]))


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
    LINES: gl.constexpr = COUNT // PER
    at = gl.minimum(first + gl.arange(0, LINES, LINE) * PER, end - 1)
    gl.inline_asm_elementwise(
        PREFETCH,
        "=r,l",
        [base + at],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _place(ring, position, N: gl.constexpr, BLOCK_K: gl.constexpr):
    """A place of the ring, or the beginning of it, as a tile (WARPS, BLOCK_K, N)."""
    TILES: gl.constexpr = ring.shape[1] * ring.shape[2] * ring.shape[3] // (WARPS * BLOCK_K * N)
    layout: gl.constexpr = STAGED if BLOCK_K >= 64 else STAGED_SHORT
    return ring.index(position)._reinterpret(gl.bfloat16, [TILES, WARPS, BLOCK_K, N], layout).index(0)


@gluon.jit
def _fetch(ring, position, weight, column, k, there, K: gl.constexpr, N: gl.constexpr, BLOCK_K: gl.constexpr):
    """Start copying N columns from `column`, 8 BLOCK_K of K from `k`, into a place of the ring."""
    slot = _place(ring, position, N, BLOCK_K)
    layout: gl.constexpr = COPY if BLOCK_K >= 64 else COPY_SHORT
    part = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    inner = gl.arange(0, BLOCK_K, gl.SliceLayout(0, gl.SliceLayout(2, layout)))
    of = gl.arange(0, N, gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    at = gl.expand_dims(gl.expand_dims(of, 0), 1) * K
    at += gl.expand_dims(gl.expand_dims(part, 1), 2) * BLOCK_K + gl.expand_dims(gl.expand_dims(inner, 0), 2)
    if there:
        async_copy.async_copy_global_to_shared(slot, weight + column * K + k + at)


@gluon.jit
def fetch_slot(
    SLOT: gl.constexpr, layer, layers, ring, head, weights, program, programs,
    SIZES: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Fetch slot SLOT of a layer (or of the next, if SLOT is past its end) to the ring's place `head`.

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
    SLOTS: gl.constexpr = 3 * C_W + C_O + C_F
    HERE: gl.constexpr = SLOT % SLOTS
    at = gl.to_tensor((layer + SLOT // SLOTS) % layers).to(gl.int64)
    position = head % RING
    last = programs - 1 - program  # output projection and down are done by the last programs
    if HERE < C_W:
        _fetch(
            ring, position, qkv_weight + at * QKV * W, program * 32, HERE * WARPS * K_W,
            program < QKV // 32, W, 32, K_W,
        )  # fmt: skip
    elif HERE < C_W + C_O:
        _fetch(
            ring, position, output_weight + at * W * XD, last * 16, (HERE - C_W) * WARPS * K_O,
            last < W // 16, XD, 16, K_O,
        )  # fmt: skip
    elif HERE < 3 * C_W + C_O:
        G: gl.constexpr = HERE - C_W - C_O
        _fetch(
            ring, position, gate_up_weight + at * 2 * F * W, program * 64 + G % 2 * 32, G // 2 * WARPS * K_W,
            program < 2 * F // 64, W, 32, K_W,
        )  # fmt: skip
    else:
        _fetch(
            ring, position, down_weight + at * W * F, last * 16, (HERE - 3 * C_W - C_O) * WARPS * K_F,
            last < W // 16, F, 16, K_F,
        )  # fmt: skip
    async_copy.commit_group()


@gluon.jit
def left_operand(a, k, rows, K: gl.constexpr, BLOCK_K: gl.constexpr):
    """8 BLOCK_K of K from `k` of all rows of a, as a left operand (8, ROWS, BLOCK_K)."""
    part = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, LEFT)))
    row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(2, LEFT)))
    inner = gl.arange(0, BLOCK_K, gl.SliceLayout(0, gl.SliceLayout(1, LEFT)))
    row3 = gl.expand_dims(gl.expand_dims(row, 0), 2)
    at = row3 * K + k + gl.expand_dims(gl.expand_dims(part, 1), 2) * BLOCK_K
    at += gl.expand_dims(gl.expand_dims(inner, 0), 1)
    return gl.load(a + at, mask=row3 < rows, other=0.0)


@gluon.jit
def right_operand(ring, head, N: gl.constexpr, BLOCK_K: gl.constexpr, RING: gl.constexpr):
    """The ring's oldest slot as a right operand; waits for it."""
    async_copy.wait_group(RING - 1)
    return _place(ring, head % RING, N, BLOCK_K).load(RIGHT)


@gluon.jit
def sum_warps(total, N: gl.constexpr):
    """The sum over warps of (8, ROWS, N), as (ROWS, N)."""
    layout: gl.constexpr = gl.BlockedLayout([8, 1, N // 16], [1, 2, 16], [1, 8, 1], [2, 1, 0])
    return gl.sum(gl.convert_layout(total, layout), 0)


@gluon.jit
def row_column(first, N: gl.constexpr):
    """Rows, and columns from `first`, of what `sum_warps` returns."""
    layout: gl.constexpr = gl.SliceLayout(
        0, gl.BlockedLayout([8, 1, N // 16], [1, 2, 16], [1, 8, 1], [2, 1, 0])
    )
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    return row, first + gl.arange(0, N, gl.SliceLayout(0, layout))


@gluon.jit
def multiply(
    a, rows, FIRST: gl.constexpr, layer, layers, ring, head, weights, program, programs,
    K: gl.constexpr, BLOCK_K: gl.constexpr, N: gl.constexpr, PAIR: gl.constexpr,
    SIZES: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Rows of a times the tile, or the PAIR of tiles, whose slots begin at FIRST; for `sum_warps`.

    Returns:
        Both products, of which the second is zero without a PAIR; the ring's new head.
    """
    CHUNKS: gl.constexpr = K // (WARPS * BLOCK_K)
    total = gl.full([WARPS, ROWS, N], 0.0, gl.float32, MMA)
    other = total
    left = left_operand(a, 0, rows, K, BLOCK_K)
    for i in gl.static_range(CHUNKS):
        following = left
        if i + 1 < CHUNKS:
            following = left_operand(a, (i + 1) * WARPS * BLOCK_K, rows, K, BLOCK_K)
        total = mma_v2(left, right_operand(ring, head, N, BLOCK_K, RING), total)
        fetch_slot(
            FIRST + RING + i * (1 + PAIR), layer, layers, ring, head, weights, program, programs, SIZES, RING
        )
        head += 1
        if PAIR:
            other = mma_v2(left, right_operand(ring, head, N, BLOCK_K, RING), other)
            fetch_slot(
                FIRST + RING + i * 2 + 1, layer, layers, ring, head, weights, program, programs, SIZES, RING
            )
            head += 1
        left = following
    return total, other, head
