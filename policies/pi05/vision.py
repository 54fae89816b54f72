"""Vision stage: SigLIP and the projector, all cameras of the batch in one call.

B batch, N cameras, Q image tokens of all cameras together, V vision width, D prefix width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from policies.pi05.dims import Pi05Dims, VisionDims


class FloatLayerNorm(nn.LayerNorm):
    """LayerNorm whose weights and arithmetic stay float32; returns the input's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class PatchEmbeddings(nn.Module):
    """Patches and learned positions, in float32.

    Non-obvious behaviors:
        `patch_embedding` holds a convolution's weights but is applied as a matmul: cuDNN convolutions use
        TF32 by default, matmuls do not.
    """

    def __init__(self, dims: Pi05Dims) -> None:
        super().__init__()
        width = dims.vision.hidden_size
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=dims.patch_size, stride=dims.patch_size)
        self.position_embedding = nn.Embedding(dims.tokens_per_image, width)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        weight = self.patch_embedding.weight
        patch, side = weight.shape[-1], images_NCHW.shape[-1] // weight.shape[-1]
        grid = images_NCHW.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # N C row y column x
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        tokens = F.linear(patches, weight.flatten(1), self.patch_embedding.bias)
        return tokens + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Full self-attention within one image."""

    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.head_dim = dims.head_dim
        self.q_proj = nn.Linear(dims.hidden_size, dims.hidden_size)
        self.k_proj = nn.Linear(dims.hidden_size, dims.hidden_size)
        self.v_proj = nn.Linear(dims.hidden_size, dims.hidden_size)
        self.out_proj = nn.Linear(dims.hidden_size, dims.hidden_size)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (images, patches, width)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        heads = [part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.project(x)]
        attended = F.scaled_dot_product_attention(*heads)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    """Two linears around a tanh-approximated GELU."""

    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims.hidden_size, dims.intermediate_size)
        self.fc2 = nn.Linear(dims.intermediate_size, dims.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.layer_norm1 = FloatLayerNorm(dims.hidden_size)
        self.self_attn = VisionAttention(dims)
        self.layer_norm2 = FloatLayerNorm(dims.hidden_size)
        self.mlp = VisionMlp(dims)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Vision(nn.Module):
    """Images in, tokens of the prefix's width out."""

    def __init__(self, dims: Pi05Dims) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(dims)
        self.layers = nn.ModuleList(VisionLayer(dims.vision) for _ in range(dims.vision.layers))
        self.post_layernorm = FloatLayerNorm(dims.vision.hidden_size)
        self.projector = nn.Linear(dims.vision.hidden_size, dims.prefix.width)

    def forward(self, images_BNCHW: Tensor) -> Tensor:
        """Encode to image_tokens_BQD, cameras in the order of the input.

        Images are float32 in [-1, 1], square, `dims.image_size` wide.
        """
        x = self.embeddings(images_BNCHW.flatten(0, 1)).to(self.projector.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        tokens = self.projector(self.post_layernorm(x))
        return tokens.unflatten(0, images_BNCHW.shape[:2]).flatten(1, 2)
