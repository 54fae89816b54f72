"""Attention of vision and prefix between FP8 matmuls, in Triton.

B batch, P tokens of one prefix or image, S rows (tokens of the batch), N columns of queries, keys and values,
X query heads, G KV heads, D head dimension. Inputs are contiguous. What is returned is e4m3, scaled by the
`inverse_scale` of the output projection.

Floors on an H200 (710 TFLOP/s) at full size: the prefix's attention needs 2.3 GFLOP, 3.3 us; that of two
images 0.6 GFLOP, 0.9 us. What the kernels reach, and blocks that were slower, are in docs/results.
"""

import torch
from torch import Tensor

from optim.core.fp8_format import FP8

FLASH_ROWS, FLASH_KEYS, FLASH_STAGES = 64, 32, 2
FLASH_SPLITS = 3  # of the keys: 67 blocks of rows would leave half of 132 processors idle
MERGE_ROWS = 4
IMAGE_ROWS, IMAGE_KEYS, IMAGE_STAGES = 64, 64, 3


def flash(
    queries_BXPD: Tensor,
    keys_BGPD: Tensor,
    values_BGPD: Tensor,
    bias_B1PP: Tensor | None,
    inverse_scale: Tensor,
) -> Tensor:
    """Compute attention over all tokens, in FP8, as rows (S, X * D).

    Args:
        bias_B1PP: finite (`policies.pi05.layers.MASKED` hides a key), for each query and key.
    """
    import triton

    from optim.kernels.flash_triton import flash_kernel, merge_kernel

    batch, heads, tokens, dim = queries_BXPD.shape
    kv_heads = keys_BGPD.shape[1]
    rows, groups = heads // kv_heads * tokens, batch * kv_heads
    split_keys = triton.cdiv(tokens, FLASH_SPLITS * FLASH_KEYS) * FLASH_KEYS
    splits = triton.cdiv(tokens, split_keys)  # none is empty
    partial = queries_BXPD.new_empty((splits, groups, rows, dim))
    tops, totals = queries_BXPD.new_empty((2, splits, groups, rows), dtype=torch.float32)
    flash_kernel[(triton.cdiv(rows, FLASH_ROWS), groups, splits)](
        queries_BXPD,
        keys_BGPD,
        values_BGPD,
        queries_BXPD if bias_B1PP is None else bias_B1PP,
        partial,
        tops,
        totals,
        dim**-0.5,
        tokens,
        split_keys,
        X=heads,
        G=kv_heads,
        D=dim,
        HAS_BIAS=bias_B1PP is not None,
        BLOCK_ROWS=FLASH_ROWS,
        BLOCK_KEYS=FLASH_KEYS,
        num_warps=4,
        num_stages=FLASH_STAGES,
    )
    rows8 = queries_BXPD.new_empty((batch * tokens, heads * dim), dtype=FP8)
    merge_kernel[(triton.cdiv(rows, MERGE_ROWS), groups)](
        partial,
        tops,
        totals,
        inverse_scale,
        rows8,
        tokens,
        X=heads,
        G=kv_heads,
        D=dim,
        SPLITS=splits,
        BLOCK_ROWS=MERGE_ROWS,
        num_warps=4,
    )
    return rows8


def image_attention(qkv_SN: Tensor, images: int, head_dim: int, inverse_scale: Tensor) -> Tensor:
    """Compute attention within each image, in FP8, as rows (S, X * D).

    Args:
        qkv_SN: rows of X heads of queries, X of keys and X of values; an image's tokens follow one another.
    """
    import triton

    from optim.kernels.flash_triton import image_kernel

    tokens, heads = qkv_SN.shape[0] // images, qkv_SN.shape[1] // (3 * head_dim)
    rows8 = qkv_SN.new_empty((qkv_SN.shape[0], heads * head_dim), dtype=FP8)
    image_kernel[(triton.cdiv(tokens, IMAGE_ROWS), heads, images)](
        qkv_SN,
        inverse_scale,
        rows8,
        head_dim**-0.5,
        tokens,
        X=heads,
        D=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_ROWS=IMAGE_ROWS,
        BLOCK_KEYS=IMAGE_KEYS,
        num_warps=4,
        num_stages=IMAGE_STAGES,
    )
    return rows8
