"""Attention of few queries over many keys, for denoise: keys are split over the GPU, softmaxes merged.

Library kernels give the 80 query rows of one action chunk to two of a GPU's processors, which walk through
the prefix block by block. Here every block of keys is a program of its own, so the walk is one step long; a
second kernel merges the partial softmaxes. Suffix keys are read where they are, not copied behind the prefix.

B batch, X query heads, G KV heads, R = X / G * H rows of one KV head, H horizon, P prefix tokens, D head
dimension, N splits.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from policies.pi05.denoise import SuffixAttention

BLOCK_KEYS = 64
BLOCK_ROWS = 16  # least that tensor cores take
HEAD_DIMS = (16, 32, 64, 128, 256)


class SplitAttention(SuffixAttention):
    """`SuffixAttention` in two Triton kernels.

    Raises:
        ImportError: there is no Triton, which comes with torch's CUDA builds.
    """

    def __init__(self) -> None:
        super().__init__()
        define_operator()

    def forward(
        self,
        queries_BXHD: Tensor,
        prefix_keys_BGPD: Tensor,
        prefix_values_BGPD: Tensor,
        keys_BGHD: Tensor,
        values_BGHD: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        attended_BHXD: Tensor = torch.ops.optim.split_attention(
            queries_BXHD.contiguous(),
            prefix_keys_BGPD.contiguous(),
            prefix_values_BGPD.contiguous(),
            keys_BGHD.contiguous(),
            values_BGHD.contiguous(),
            bias,
        )
        return attended_BHXD.transpose(1, 2)


def use_split_attention(path: str, module: nn.Module) -> nn.Module | None:
    """Swap for `replace_modules`: every `SuffixAttention` becomes a `SplitAttention`."""
    return SplitAttention() if isinstance(module, SuffixAttention) else None


def attend_split(
    queries_BXHD: Tensor,
    prefix_keys_BGPD: Tensor,
    prefix_values_BGPD: Tensor,
    keys_BGHD: Tensor,
    values_BGHD: Tensor,
    bias: Tensor | None,
    wrap: Callable[[Any], Any] = lambda kernel: kernel,
) -> Tensor:
    """Compute attended_BHXD in the queries' dtype; arguments must be contiguous.

    Args:
        wrap: what `torch.library` wants around a kernel inside an operator.

    Raises:
        ValueError: a head dimension that the kernels do not take.
    """
    import triton

    from optim.kernels.split_attention_triton import merge_kernel, partial_kernel

    batch, heads, horizon, head_dim = queries_BXHD.shape
    groups, prefix = prefix_keys_BGPD.shape[1:3]
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim must be one of {HEAD_DIMS}, got {head_dim}; use optim/denoise=cuda_graph")
    rows = heads // groups * horizon
    prefix_splits = triton.cdiv(prefix, BLOCK_KEYS)
    splits = prefix_splits + triton.cdiv(horizon, BLOCK_KEYS)
    partial = queries_BXHD.new_empty((batch * groups, splits, rows, head_dim), dtype=torch.float32)
    lse = queries_BXHD.new_empty((batch * groups, splits, rows), dtype=torch.float32)
    attended_BHXD = queries_BXHD.new_empty((batch, horizon, heads, head_dim))
    wrap(partial_kernel)[(splits, triton.cdiv(rows, BLOCK_ROWS), batch * groups)](
        queries_BXHD,
        prefix_keys_BGPD,
        prefix_values_BGPD,
        keys_BGHD,
        values_BGHD,
        queries_BXHD if bias is None else bias,
        partial,
        lse,
        head_dim**-0.5,
        rows,
        prefix,
        horizon,
        groups,
        splits,
        prefix_splits,
        HAS_BIAS=bias is not None,
        D=head_dim,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_KEYS=BLOCK_KEYS,
        num_warps=4,
    )
    wrap(merge_kernel)[(rows, batch * groups)](
        partial,
        lse,
        attended_BHXD,
        rows,
        horizon,
        heads,
        groups,
        splits,
        D=head_dim,
        SPLITS=triton.next_power_of_2(splits),
        num_warps=4,
    )
    return attended_BHXD


@functools.cache
def define_operator() -> None:
    """Define `torch.ops.optim.split_attention`, which is `attend_split` for torch.compile.

    Late, because Triton is there only where a GPU is.
    """
    from torch.library import triton_op, wrap_triton

    @triton_op("optim::split_attention", mutates_args=())
    def split_attention(
        queries_BXHD: Tensor,
        prefix_keys_BGPD: Tensor,
        prefix_values_BGPD: Tensor,
        keys_BGHD: Tensor,
        values_BGHD: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        return attend_split(
            queries_BXHD, prefix_keys_BGPD, prefix_values_BGPD, keys_BGHD, values_BGHD, bias, wrap_triton
        )
