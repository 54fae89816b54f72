"""Triton kernel of `optim.kernels.patches`; imports Triton, so only where it is there."""

import triton
import triton.language as tl


@triton.jit
def patches_kernel(
    images,
    weight,
    bias,
    positions,
    tokens,
    rows,
    WIDTH: tl.constexpr,
    COLOURS: tl.constexpr,
    SIDE: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """Some columns of some tokens: patches times weight, plus bias and position.

    The weight is (WIDTH, COLOURS, PATCH, PATCH). Images are (images, COLOURS, SIDE, SIDE),
    and an image's patches come row by row.
    """
    INNER: tl.constexpr = COLOURS * PATCH * PATCH
    PER_ROW: tl.constexpr = SIDE // PATCH
    row = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_row, is_column = (row < rows)[:, None], (column < WIDTH)[None, :]
    place = row % (PER_ROW * PER_ROW)
    corner = row // (PER_ROW * PER_ROW) * (COLOURS * SIDE * SIDE)
    corner += place // PER_ROW * (PATCH * SIDE) + place % PER_ROW * PATCH
    total = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, INNER, BLOCK_INNER):
        inner = start + tl.arange(0, BLOCK_INNER)
        is_inner = inner < INNER
        colour, within = inner // (PATCH * PATCH), inner % (PATCH * PATCH)
        pixel = colour * (SIDE * SIDE) + within // PATCH * SIDE + within % PATCH
        x = tl.load(images + corner[:, None] + pixel[None, :], mask=is_row & is_inner[None, :], other=0.0)
        w = tl.load(
            weight + inner[:, None] + column[None, :] * INNER, mask=is_inner[:, None] & is_column, other=0.0
        )
        total = tl.dot(x, w, total, input_precision="tf32x3")
    total += tl.load(bias + column, mask=column < WIDTH, other=0.0)[None, :]
    total += tl.load(positions + place[:, None] * WIDTH + column[None, :], mask=is_row & is_column, other=0.0)
    to = tokens + row[:, None] * WIDTH + column[None, :]
    tl.store(to, total.to(tokens.dtype.element_ty), mask=is_row & is_column)
