"""What the kernels of `optim.kernels` compute, in plain PyTorch under the names of their launchers.

Letters of shapes are those of the launchers' modules.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from optim.core.fp8_format import quantise
from optim.kernels.denoise.contract import (
    Heads,
    Modulations,
    OldChunk,
    PrefixCache,
    Scratch,
    Sizes,
    Weights,
    new_scratch,
)
from optim.kernels.rows import Norm
from policies.pi05.layers import attend, rms_normalise
from policies.pi05.vision import PatchEmbeddings


def add_norm(
    x_SW: Tensor, delta_SW: Tensor | None, norm: Norm, inverse_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute what the launcher leaves in `x_SW`, and what it returns."""
    total = x_SW if delta_SW is None else x_SW + delta_SW
    if norm.bias_W is None:
        normed = rms_normalise(total) * norm.weight_W
    else:
        normed = F.layer_norm(total.float(), norm.weight_W.shape, norm.weight_W, norm.bias_W, norm.eps)
    return total, normed.to(x_SW.dtype) if inverse_scale is None else quantise(normed, inverse_scale)


def gelu(x_SF: Tensor, inverse_scale: Tensor) -> Tensor:
    return quantise(F.gelu(x_SF.float(), approximate="tanh"), inverse_scale)


def geglu(gate_up_S2F: Tensor, inverse_scale: Tensor) -> Tensor:
    gate, up = gate_up_S2F.float().chunk(2, dim=-1)
    return quantise(F.gelu(gate, approximate="tanh") * up, inverse_scale)


def rope_split(
    qkv_SN: Tensor, rope: tuple[Tensor, Tensor], heads: int, keys_shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries (of `heads` heads), keys and values as the launcher writes them, float32."""
    batch, kv_heads, tokens, dim = keys_shape
    parts = qkv_SN.float().view(batch, tokens, heads + 2 * kv_heads, dim).transpose(1, 2)
    cos, sin = (table.view(batch, 1, tokens, dim // 2) for table in rope)
    turned, values = parts[:, : heads + kv_heads], parts[:, heads + kv_heads :]
    first, second = turned.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned[:, :heads], turned[:, heads:], values


def flash(
    queries_BXPD: Tensor,
    keys_BGPD: Tensor,
    values_BGPD: Tensor,
    bias_B1PP: Tensor | None,
    inverse_scale: Tensor,
) -> Tensor:
    bias = None if bias_B1PP is None else bias_B1PP.float()
    attended = attend(queries_BXPD.float(), keys_BGPD.float(), values_BGPD.float(), bias)
    return quantise(attended.transpose(1, 2).flatten(2).flatten(0, 1), inverse_scale)


def image_attention(qkv_SN: Tensor, images: int, head_dim: int, inverse_scale: Tensor) -> Tensor:
    heads = qkv_SN.shape[1] // (3 * head_dim)
    queries, keys, values = qkv_SN.view(images, -1, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    return flash(queries, keys, values, None, inverse_scale)


def embed_patches(module: PatchEmbeddings, images_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
    tokens: Tensor = module(images_NCHW)
    return tokens.to(dtype)


def split_attention(
    queries_BXHD: Tensor,
    prefix_keys_BGPD: Tensor,
    prefix_values_BGPD: Tensor,
    keys_BGHD: Tensor,
    values_BGHD: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Compute attended_BXHD, float32."""
    heads = queries_BXHD.shape[1] // keys_BGHD.shape[1]
    keys = torch.cat((prefix_keys_BGPD, keys_BGHD), dim=2).float().repeat_interleave(heads, dim=1)
    values = torch.cat((prefix_values_BGPD, values_BGHD), dim=2).float().repeat_interleave(heads, dim=1)
    scores = queries_BXHD.float() @ keys.transpose(-1, -2) * queries_BXHD.shape[-1] ** -0.5
    return torch.softmax(scores if bias is None else scores + bias.float(), dim=-1) @ values


def denoise(
    actions_BHA: Tensor,
    heads: Heads,
    modulations: Modulations,
    weights: Weights,
    prefix: PrefixCache,
    sizes: Sizes,
    old: OldChunk | None = None,
) -> Scratch:
    """Turn noise into actions, in place, float32; attention is not split.

    Args:
        weights: packed as for `optim.kernels.denoise.phases`.
    """
    batch, horizon, action_dim = actions_BHA.shape
    scratch = new_scratch(sizes, prefix, batch, horizon)
    actions_MA = actions_BHA.view(-1, action_dim)
    for step in range(modulations.out_shift_EA.shape[0]):
        scales, gates = modulations.one_plus_scale_ENW[step], modulations.gate_ENW[step]
        x_MW = F.linear(actions_MA, heads.in_weight_WA, heads.in_bias_W)
        for i in range(prefix.keys_LB1PD.shape[0]):
            out = (rms_normalise(x_MW) * scales[2 * i]) @ weights.qkv_LCK[i].float().T
            out = (out + modulations.qkv_shift_ELC[step, i]).view(batch, horizon, -1, sizes.head_dim)
            queries, keys, values = _rotated(out.transpose(1, 2), prefix, sizes.heads)
            attended = split_attention(
                queries, prefix.keys_LB1PD[i], prefix.values_LB1PD[i], keys, values, prefix.bias
            )
            attended_MC = attended.transpose(1, 2).reshape(batch * horizon, -1)
            x_MW = x_MW + gates[2 * i] * (attended_MC @ weights.output_LCK[i].float().T)
            out = (rms_normalise(x_MW) * scales[2 * i + 1]) @ weights.gate_up_LCK[i].float().T
            out = out + modulations.gate_up_shift_ELC[step, i]
            hidden_MF = F.gelu(out[:, 0::2], approximate="tanh") * out[:, 1::2]
            x_MW = x_MW + gates[2 * i + 1] * (hidden_MF @ weights.down_LCK[i].float().T)
        velocity = (rms_normalise(x_MW) * scales[-1]) @ heads.out_weight_AW.T + modulations.out_shift_EA[step]
        if old is not None:
            old_2MA, (t, gain) = old.old_2BHA.view(2, -1, action_dim), old.steps_2E[:, step]
            velocity = velocity - gain * old_2MA[1] * (old_2MA[0] - (actions_MA - t * velocity))
        actions_MA -= velocity / modulations.out_shift_EA.shape[0]
    for name, value in {
        "x_MW": x_MW,
        "scaled_MW": x_MW * scales[-1],
        "squares_MP": x_MW.square().unflatten(1, (scratch.squares_MP.shape[1], -1)).sum(-1),
        "queries_BXHD": queries,
        "keys_B1HD": keys,
        "values_B1HD": values,
        "attended_MC": attended_MC,
        "hidden_MF": hidden_MF,
    }.items():
        getattr(scratch, name).copy_(value)
    return scratch


def _rotated(qkv: Tensor, prefix: PrefixCache, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, horizon, dim = qkv.shape
    cos, sin = (table.view(batch, 1, horizon, dim // 2) for table in (prefix.cos, prefix.sin))
    first, second = qkv[..., 0::2], qkv[..., 1::2]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    values = torch.cat((first, second), dim=-1)
    return turned[:, :heads], turned[:, heads : heads + 1], values[:, heads + 1 :]
