"""What becomes a TensorRT engine: vision and prefix as modules that take and return tensors alone.

B batch, Q image tokens, P prefix tokens, L layers, G KV heads, H query heads, D head dimension, W width.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optim.rewrite.merge_linears import replace_modules
from policies.pi05.prefix import LastPrefixLayer, Prefix, PrefixLayer


class VisionCore(nn.Module):
    """What becomes an engine of the vision stage, with its dtypes at the boundary.

    Args:
        stage: in the engine's precision.
        dtype: of the tokens: what the stage that is replaced returns.
    """

    def __init__(self, stage: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.stage = stage
        self.dtype = dtype

    def forward(self, images_BNCHW: Tensor) -> Tensor:
        """Compute image_tokens_BQD in `dtype`.

        Args:
            images_BNCHW: float32, as the stage takes them.
        """
        tokens: Tensor = self.stage(images_BNCHW)
        return tokens.to(self.dtype)


class PrefixCore(nn.Module):
    """What becomes an engine of the prefix stage: all layers, without embeddings and masks."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        layers: Any = stage.layers
        self.layers = nn.ModuleList(
            [*(PrefixCoreLayer(layer) for layer in layers[:-1]), LastCoreLayer(layers[-1])]
        )

    def forward(self, x_BPW: Tensor, cos: Tensor, sin: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys_LBGPD after RoPE, and values_LBGPD.

        Args:
            cos, sin: float32 RoPE tables.
            bias: of attention, (B, 1, P, P); none if every token is valid.
        """
        keys, values = [], []
        for layer in self.layers[:-1]:
            x_BPW, layer_keys, layer_values = layer(x_BPW, cos, sin, *bias)
            keys.append(layer_keys)
            values.append(layer_values)
        layer_keys, layer_values = self.layers[-1](x_BPW, cos, sin)
        return torch.stack([*keys, layer_keys]), torch.stack([*values, layer_values])


class PrefixCoreLayer(nn.Module):
    """A prefix layer as TensorRT takes it.

    Non-obvious behaviors:
        `policies.pi05.layers.attend` lets all query heads of a KV head share its keys as further rows.
        Torch-TensorRT 2.11 converts attention only if queries and keys have one shape, so keys and values are
        repeated for every head here.
    """

    def __init__(self, layer: PrefixLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x_BPW: Tensor, cos: Tensor, sin: Tensor, *bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.layer
        queries, keys, values = layer.self_attn.project(layer.input_layernorm(x_BPW), (cos, sin))
        heads = queries.shape[1]
        attended = F.scaled_dot_product_attention(
            queries, _repeat(keys, heads), _repeat(values, heads), attn_mask=bias[0] if bias else None
        )
        x_BPW = x_BPW + layer.self_attn.output(attended)
        return x_BPW + layer.mlp(layer.post_attention_layernorm(x_BPW)), keys, values


class LastCoreLayer(nn.Module):
    """The last prefix layer, with tensors as arguments."""

    def __init__(self, layer: LastPrefixLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BPW: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.layer(x_BPW, (cos, sin))
        return keys, values


def cast_linears(stage: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a stage with its linears cast; everything else is shared.

    Norms and the embedding of patches are no linears, so they keep float32; the vision stage takes the dtype
    of its activations from its projector.
    """

    def swap(path: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Linear):
            return None
        other = copy.copy(module)
        other._parameters = {
            name: None if weight is None else nn.Parameter(weight.detach().to(dtype), requires_grad=False)
            for name, weight in module._parameters.items()
        }
        return other

    return replace_modules(stage, swap)


def prefix_inputs(stage: Prefix, *args: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Make the arguments of `PrefixCore`, and prefix_mask_BP, from the arguments of the stage."""
    image_tokens_BQW, image_mask_BN, tokens_BT, token_mask_BT = args
    assert image_tokens_BQW is not None
    assert tokens_BT is not None
    x_BPW, rope, bias, mask_BP = stage.prepare(image_tokens_BQW, image_mask_BN, tokens_BT, token_mask_BT)
    return (x_BPW, *rope) if bias is None else (x_BPW, *rope, bias), mask_BP


def _repeat(keys_BGPD: Tensor, heads: int) -> Tensor:
    repeat = (-1, -1, heads // keys_BGPD.shape[1], -1, -1)
    return keys_BGPD[:, :, None].expand(repeat).flatten(1, 2)
