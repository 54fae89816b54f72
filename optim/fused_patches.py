"""Vision's patch embedding in one Triton kernel, with a plain reference.

Its matmul is float32, for which cuBLAS does not use tensor cores: 39 us on an H200, and 12 more for the
copies and sums around it.

N images, C colours, H height, T tokens of an image, V vision width.
"""

import torch
from torch import Tensor

from policies.pi05.vision import PatchEmbeddings

BLOCK_TOKENS, BLOCK_COLUMNS, BLOCK_INNER, STAGES = 32, 64, 32, 3


def embed_patches(module: PatchEmbeddings, images_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Return tokens_NTV in `dtype` of square float32 images.

    A product is three of TF32, whose sum is as exact as float32's.
    """
    import triton

    from optim.fused_patches_kernels import patches_kernel

    weight = module.patch_embedding.weight
    (images, colours, side, _), (width, _, patch, _) = images_NCHW.shape, weight.shape
    row = side // patch
    tokens = images_NCHW.new_empty((images, row * row, width), dtype=dtype)
    patches_kernel[(triton.cdiv(images * row * row, BLOCK_TOKENS), triton.cdiv(width, BLOCK_COLUMNS))](
        images_NCHW.contiguous(),
        weight,
        module.patch_embedding.bias,
        module.position_embedding.weight,
        tokens,
        images * row * row,
        WIDTH=width,
        COLOURS=colours,
        SIDE=side,
        PATCH=patch,
        BLOCK_TOKENS=BLOCK_TOKENS,
        BLOCK_COLUMNS=BLOCK_COLUMNS,
        BLOCK_INNER=BLOCK_INNER,
        num_warps=4,
        num_stages=STAGES,
    )
    return tokens


def embed_patches_reference(module: PatchEmbeddings, images_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `embed_patches` does."""
    tokens: Tensor = module(images_NCHW)
    return tokens.to(dtype)
