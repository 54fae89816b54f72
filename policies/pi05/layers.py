"""Building blocks of prefix and action expert: RMSNorm, RoPE, attention with few KV heads, GeGLU.

B batch, S query tokens, P key tokens, W width, H query heads, G KV heads, D head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0
# Finite, so that a row without any visible key averages all values instead of giving NaN (openpi does the
# same with -2.38e38; that times log2(e), as fused kernels compute it, would overflow float32). Any score
# added to it is absorbed.
MASKED = -1e30


def rms_normalise(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + NORM_EPS)


class RMSNorm(nn.Module):
    """Gemma's norm: x / rms(x) * (1 + weight), weight and arithmetic in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return (rms_normalise(x) * (1.0 + self.weight)).to(x.dtype)


class GatedMlp(nn.Module):
    """GeGLU with tanh-approximated GELU."""

    def __init__(self, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_dim, bias=False)
        self.up_proj = nn.Linear(width, mlp_dim, bias=False)
        self.down_proj = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class KeyValue(nn.Module):
    """Keys and values of a layer: all that the last prefix layer needs."""

    def __init__(self, width: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)

    def keys_values(self, x_BSW: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Project to keys_BGSD, rotated, and values_BGSD."""
        keys = rotate(split_heads(self.k_proj(x_BSW), self.head_dim), rope)
        return keys, split_heads(self.v_proj(x_BSW), self.head_dim)


class Attention(KeyValue):
    """The four projections of a layer; the caller attends."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__(width, kv_heads, head_dim)
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def project(self, x_BSW: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Project to queries_BHSD and keys_BGSD, both rotated, and values_BGSD."""
        queries = rotate(split_heads(self.q_proj(x_BSW), self.head_dim), rope)
        return queries, *self.keys_values(x_BSW, rope)

    def output(self, attended_BHSD: Tensor) -> Tensor:
        """Project back to (B, S, W)."""
        return self.o_proj(attended_BHSD.transpose(1, 2).flatten(2))


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, S, heads * D) -> (B, heads, S, D)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def rope_tables(positions_BS: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Compute float32 (cos, sin), each (B, 1, S, D), for the half-split rotation.

    Not a buffer: that would follow `module.to(dtype)` and lose positions.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BS.device) / head_dim
    angles = positions_BS[:, None, :, None].float() * (1.0 / ROPE_BASE**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHSD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate by position in float32, as openpi's JAX code does; the result has x's dtype."""
    cos, sin = rope
    first, second = x_BHSD.chunk(2, dim=-1)
    return (x_BHSD * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BHSD.dtype)


def attend(queries_BHSD: Tensor, keys_BGPD: Tensor, values_BGPD: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(D) + bias) v, (B, H, S, D), without copying keys per query head.

    Args:
        bias: None, or additive in the queries' dtype: (B, 1, 1, P) by key or (B, 1, S, P) by query and key.
    """
    heads, kv_heads = queries_BHSD.shape[1], keys_BGPD.shape[1]
    if bias is None or bias.shape[2] == 1:
        # the query heads of one KV head become further rows of it
        rows = queries_BHSD.reshape(queries_BHSD.shape[0], kv_heads, -1, queries_BHSD.shape[3])
        attended = F.scaled_dot_product_attention(rows, keys_BGPD, values_BGPD, attn_mask=bias)
        return attended.reshape(queries_BHSD.shape)
    repeat = (-1, -1, heads // kv_heads, -1, -1)
    keys = keys_BGPD[:, :, None].expand(repeat).flatten(1, 2)  # a view when there is one KV head
    values = values_BGPD[:, :, None].expand(repeat).flatten(1, 2)
    return F.scaled_dot_product_attention(queries_BHSD, keys, values, attn_mask=bias)


def mask_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive bias: 0 where `visible`, MASKED elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, MASKED)
