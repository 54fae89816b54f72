"""Row-wise steps between FP8 matmuls, each in one Triton kernel.

S rows (tokens of the batch), W width, F MLP width, B batch, P tokens of one prefix, X query heads, G KV
heads, D head dimension. Attention is in `optim.kernels.flash`. What a kernel returns for the next matmul is
e4m3, scaled by the `inverse_scale` of that matmul's input.

Floors on an H200 (4.27 TB/s) for the prefix at full size, 535 tokens: GEGLU reads 35 MB and writes 9 MB,
10.3 us; norms move 7.7 MB, 1.8 us. What the kernels reach is in docs/results, as are blocks that were slower.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optim.core.fp8_format import FP8

BLOCK_COLUMNS = 2048  # of a row, for the kernels that need not see it whole
NORM_WARPS = 8
ROPE_ROWS, ROPE_WARPS = 16, 8


@dataclass(frozen=True)
class Norm:
    """A norm's weights, float32: RMS (weight holds 1 + w, no bias) or layer norm (weight and bias)."""

    weight_W: Tensor
    bias_W: Tensor | None
    eps: float


def add_norm(x_SW: Tensor, delta_SW: Tensor | None, norm: Norm, inverse_scale: Tensor | None) -> Tensor:
    """Add `delta_SW` to `x_SW`, in place, and return the norm of the sum, in FP8 where there is a scale."""
    import triton

    from optim.kernels.rows_triton import add_norm_kernel

    rows, width = x_SW.shape
    normed_SW = torch.empty_like(x_SW, dtype=x_SW.dtype if inverse_scale is None else FP8)
    add_norm_kernel[(rows,)](
        x_SW,
        x_SW if delta_SW is None else delta_SW,
        norm.weight_W,
        norm.weight_W if norm.bias_W is None else norm.bias_W,
        norm.weight_W if inverse_scale is None else inverse_scale,
        normed_SW,
        norm.eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        HAS_DELTA=delta_SW is not None,
        IS_FP8=inverse_scale is not None,
        IS_LAYER_NORM=norm.bias_W is not None,
        num_warps=NORM_WARPS,
    )
    return normed_SW


def gelu(x_SF: Tensor, inverse_scale: Tensor) -> Tensor:
    """Compute GELU (tanh) in FP8."""
    from optim.kernels.rows_triton import gelu_kernel

    return _by_blocks(gelu_kernel, x_SF, x_SF.shape[1], inverse_scale)


def geglu(gate_up_S2F: Tensor, inverse_scale: Tensor) -> Tensor:
    """Compute gelu(gate) * up in FP8; a row is all gates, then all ups."""
    from optim.kernels.rows_triton import geglu_kernel

    return _by_blocks(geglu_kernel, gate_up_S2F, gate_up_S2F.shape[1] // 2, inverse_scale)


def rope_split(
    qkv_SN: Tensor,
    rope: tuple[Tensor, Tensor],
    queries_BXPD: Tensor | None,
    keys_BGPD: Tensor,
    values_BGPD: Tensor,
) -> None:
    """Write queries and keys after RoPE, and values, from rows of X query, G key and G value heads.

    Args:
        rope: float32 cos and sin, each (S, D / 2).
        queries_BXPD: None if the rows have no queries.
    """
    import triton

    from optim.kernels.rows_triton import rope_split_kernel

    _, kv_heads, tokens, dim = keys_BGPD.shape
    heads = 0 if queries_BXPD is None else queries_BXPD.shape[1]
    rope_split_kernel[(triton.cdiv(qkv_SN.shape[0], ROPE_ROWS), heads + 2 * kv_heads)](
        qkv_SN,
        *rope,
        keys_BGPD if queries_BXPD is None else queries_BXPD,
        keys_BGPD,
        values_BGPD,
        qkv_SN.shape[0],
        tokens,
        X=heads,
        G=kv_heads,
        D=dim,
        BLOCK_ROWS=ROPE_ROWS,
        num_warps=ROPE_WARPS,
    )


def layer_norm(module: nn.LayerNorm) -> Norm:
    """Take a layer norm's weights as the kernels read them: float32."""
    return Norm(module.weight.detach().float(), module.bias.detach().float(), module.eps)


def _by_blocks(kernel: object, x_SW: Tensor, width: int, inverse_scale: Tensor) -> Tensor:
    import triton

    rows8 = x_SW.new_empty((x_SW.shape[0], width), dtype=FP8)
    block = min(BLOCK_COLUMNS, triton.next_power_of_2(width))
    kernel[(x_SW.shape[0], triton.cdiv(width, block))](  # type: ignore[index]
        x_SW, inverse_scale, rows8, WIDTH=width, BLOCK=block, num_warps=4
    )
    return rows8
