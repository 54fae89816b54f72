"""Prefix stage: image and prompt tokens through Gemma to keys and values for the action expert.

B batch, N cameras, Q image tokens, T prompt tokens, P = Q + T prefix tokens, L layers, G KV heads, D head
dimension, W width.
"""

import math

import torch
from torch import Tensor, nn

from policies.pi05.dims import GemmaDims, Pi05Dims
from policies.pi05.layers import Attention, GatedMlp, KeyValue, RMSNorm, attend, mask_bias, rope_tables


class PrefixLayer(nn.Module):
    """One Gemma layer that also returns its keys and values."""

    def __init__(self, dims: GemmaDims) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(dims.width)
        self.self_attn = Attention(dims.width, dims.num_heads, dims.num_kv_heads, dims.head_dim)
        self.post_attention_layernorm = RMSNorm(dims.width)
        self.mlp = GatedMlp(dims.width, dims.mlp_dim)

    def forward(
        self, x_BPW: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.input_layernorm(x_BPW)
        queries, keys, values = self.self_attn.project(normed, rope)
        attended = attend(queries, keys, values, bias)
        x_BPW = x_BPW + self.self_attn.output(attended)
        return x_BPW + self.mlp(self.post_attention_layernorm(x_BPW)), keys, values


class LastPrefixLayer(nn.Module):
    """The last layer: nothing reads its attention output or its MLP, so it has neither."""

    def __init__(self, dims: GemmaDims) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(dims.width)
        self.self_attn = KeyValue(dims.width, dims.num_kv_heads, dims.head_dim)

    def forward(self, x_BPW: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.self_attn.keys_values(self.input_layernorm(x_BPW), rope)


class Prefix(nn.Module):
    """Tokens in, one KV cache out.

    Non-obvious behaviors:
        Prompt embeddings are scaled by sqrt(width); image tokens are not (openpi's Gemma, unlike Hugging
        Face's). A masked token takes no position and is invisible as a key. As a query it sees nothing, so it
        averages all values: its own keys and values are garbage that nobody reads, kept equal to openpi's.
    """

    def __init__(self, dims: Pi05Dims) -> None:
        super().__init__()
        self.head_dim = dims.prefix.head_dim
        self.embedding = nn.Embedding(dims.vocab_size, dims.prefix.width)
        self.layers = nn.ModuleList(PrefixLayer(dims.prefix) for _ in range(dims.prefix.depth - 1))
        self.layers.append(LastPrefixLayer(dims.prefix))

    def forward(
        self,
        image_tokens_BQW: Tensor,
        image_mask_BN: Tensor | None,
        tokens_BT: Tensor,
        token_mask_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute keys_LBGPD (after RoPE), values_LBGPD and prefix_mask_BP (None if every token is valid).

        Args:
            image_tokens_BQW: from the vision stage, in this stage's dtype.
            image_mask_BN: False for a camera that is not there; None if all are.
            tokens_BT: int64 token ids.
            token_mask_BT: False for padding; None if no prompt is padded.
        """
        x, rope, bias, mask_BP = self.prepare(image_tokens_BQW, image_mask_BN, tokens_BT, token_mask_BT)
        return *self.keys_values(x, rope, bias), mask_BP

    def prepare(
        self,
        image_tokens_BQW: Tensor,
        image_mask_BN: Tensor | None,
        tokens_BT: Tensor,
        token_mask_BT: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None, Tensor | None]:
        """Embed the prefix, x_BPW, and compute its RoPE tables, the attention bias and prefix_mask_BP.

        Bias and mask are None if every token is valid.
        """
        x_BPW = self.embed(image_tokens_BQW, tokens_BT)
        mask_BP = prefix_mask(image_tokens_BQW, image_mask_BN, tokens_BT, token_mask_BT)
        if mask_BP is None:
            places_1P = torch.arange(x_BPW.shape[1], device=x_BPW.device)[None]
            return x_BPW, rope_tables(places_1P, self.head_dim), None, None
        bias = mask_bias((mask_BP[:, :, None] & mask_BP[:, None, :])[:, None], x_BPW.dtype)
        return x_BPW, rope_tables(mask_BP.cumsum(dim=1) - 1, self.head_dim), bias, mask_BP

    def keys_values(
        self, x_BPW: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the layers on the embedded prefix: keys_LBGPD (after RoPE) and values_LBGPD."""
        keys, values = [], []
        for layer in self.layers[:-1]:
            x_BPW, layer_keys, layer_values = layer(x_BPW, rope, bias)
            keys.append(layer_keys)
            values.append(layer_values)
        layer_keys, layer_values = self.layers[-1](x_BPW, rope)
        return torch.stack([*keys, layer_keys]), torch.stack([*values, layer_values])

    def embed(self, image_tokens_BQW: Tensor, tokens_BT: Tensor) -> Tensor:
        """Join image tokens and the embedded prompt, (B, P, W)."""
        prompt_BTW = self.embedding(tokens_BT) * math.sqrt(image_tokens_BQW.shape[-1])
        return torch.cat((image_tokens_BQW, prompt_BTW), dim=1)


def prefix_mask(
    image_tokens_BQW: Tensor, image_mask_BN: Tensor | None, tokens_BT: Tensor, token_mask_BT: Tensor | None
) -> Tensor | None:
    """Mark the valid prefix tokens; None if all are."""
    if image_mask_BN is None and token_mask_BT is None:
        return None
    batch, image_tokens = image_tokens_BQW.shape[:2]
    if image_mask_BN is None:
        image_mask_BN = torch.ones(batch, 1, dtype=torch.bool, device=tokens_BT.device)
    if token_mask_BT is None:
        token_mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    per_camera = image_tokens // image_mask_BN.shape[1]
    image_mask_BQ = image_mask_BN[:, :, None].expand(-1, -1, per_camera).flatten(1)
    return torch.cat((image_mask_BQ, token_mask_BT), dim=1)
