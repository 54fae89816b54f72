"""Vision's patch embedding in one Triton kernel.

Its matmul is float32, for which cuBLAS does not use tensor cores: 39 us on an H200, and 12 more for the
copies and sums around it.

N images, C colours, H W height and width, T tokens of an image, V vision width.
"""

import torch
from torch import Tensor

from policies.pi05.vision import PatchEmbeddings

# 288 programs at full size; others were not timed
BLOCK_TOKENS, BLOCK_COLUMNS, BLOCK_INNER, PIPELINE_STAGES = 32, 64, 32, 3


def embed_patches(module: PatchEmbeddings, images_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute tokens_NTV in `dtype` from square float32 images.

    A product is three of TF32, whose sum is as exact as float32's.

    Raises:
        ValueError: images of another size than the positions are for.
    """
    import triton

    from optim.kernels.patches_triton import patches_kernel

    weight, patches = module.patch_embedding.weight, module.position_embedding.num_embeddings
    (images, colours, height, side), (width, _, patch, _) = images_NCHW.shape, weight.shape
    if height != side or (side // patch) ** 2 != patches:
        raise ValueError(f"images must be square with {patches} patches of {patch}, got {height} x {side}")
    tokens = images_NCHW.new_empty((images, patches, width), dtype=dtype)
    patches_kernel[(triton.cdiv(images * patches, BLOCK_TOKENS), triton.cdiv(width, BLOCK_COLUMNS))](
        images_NCHW.contiguous(),
        weight.contiguous(),
        module.patch_embedding.bias,
        module.position_embedding.weight,
        tokens,
        images * patches,
        WIDTH=width,
        COLOURS=colours,
        SIDE=side,
        PATCH=patch,
        BLOCK_TOKENS=BLOCK_TOKENS,
        BLOCK_COLUMNS=BLOCK_COLUMNS,
        BLOCK_INNER=BLOCK_INNER,
        num_warps=4,
        num_stages=PIPELINE_STAGES,
    )
    return tokens
