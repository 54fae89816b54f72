"""Sizes of the reference network: 10.8 M parameters, 22 MB in bfloat16, real time on two CPU cores."""

from policies.pi05.dims import LIBERO_MASKED_CAMERAS, OPENPI_CAMERAS, GemmaDims, Pi05Dims, VisionDims

DIMS = Pi05Dims(
    vocab_size=512,
    vision=VisionDims(intermediate_size=768, hidden_size=256, layers=6, heads=4),
    prefix=GemmaDims(width=256, depth=4, mlp_dim=768, num_heads=4, num_kv_heads=1, head_dim=64),
    expert=GemmaDims(width=256, depth=4, mlp_dim=512, num_heads=4, num_kv_heads=1, head_dim=64),
    action_horizon=10,
    action_dim=32,
    max_token_len=200,
    image_size=224,
    patch_size=16,
    cameras=OPENPI_CAMERAS,
    masked_cameras=LIBERO_MASKED_CAMERAS,
)
