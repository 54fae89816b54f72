"""Fused projections: matmuls that read the same input become one, with weights copied side by side.

Every number is the same dot product as before; only the kernel that a library chooses may differ.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from policies.pi05.layers import Attention, GatedMlp, KeyValue, rotate, split_heads
from policies.pi05.vision import VisionAttention

Swap = Callable[[str, nn.Module], nn.Module | None]

# fused linear -> one of those that it replaces: they share their input, hence its calibrated maximum
INPUT_OF = {"qkv_proj": "q_proj", "kv_proj": "k_proj", "gate_up_proj": "gate_proj"}


def replace_modules(module: nn.Module, swap: Swap, path: str = "") -> nn.Module:
    """Copy a module tree with some modules replaced; all weights are shared.

    Args:
        swap: given a module's path and the module, returns its replacement or None to keep it.
    """
    if (replacement := swap(path, module)) is not None:
        return replacement
    other = copy.copy(module)
    other._modules = {
        name: None if child is None else replace_modules(child, swap, f"{path}.{name}" if path else name)
        for name, child in module._modules.items()
    }
    return other


def fuse(stage: nn.Module) -> nn.Module:
    """Copy a stage with its projections fused; all other weights are shared."""
    return replace_modules(stage, _fused)


def merge(linears: list[nn.Linear]) -> nn.Linear:
    """Merge linears into one that gives their outputs side by side."""
    first, width = linears[0], sum(linear.out_features for linear in linears)
    merged = nn.Linear(first.in_features, width, bias=first.bias is not None, device="meta")
    merged.weight = _joined([linear.weight for linear in linears])
    if first.bias is not None:
        merged.bias = _joined([linear.bias for linear in linears])
    return merged


def _joined(tensors: list[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([tensor.detach() for tensor in tensors]), requires_grad=False)


class FusedKeyValue(KeyValue):
    """Keys and values from one matmul."""

    def __init__(self, unfused: KeyValue) -> None:
        nn.Module.__init__(self)
        self.head_dim = unfused.head_dim
        self.kv_proj = merge([unfused.k_proj, unfused.v_proj])

    def keys_values(self, x_BSW: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keys, values = self.kv_proj(x_BSW).chunk(2, dim=-1)
        return rotate(split_heads(keys, self.head_dim), rope), split_heads(values, self.head_dim)


class FusedAttention(Attention):
    """Queries, keys and values from one matmul."""

    def __init__(self, unfused: Attention) -> None:
        nn.Module.__init__(self)
        self.head_dim = unfused.head_dim
        self._widths = [p.out_features for p in (unfused.q_proj, unfused.k_proj, unfused.v_proj)]
        self.qkv_proj = merge([unfused.q_proj, unfused.k_proj, unfused.v_proj])
        self.o_proj = unfused.o_proj

    def project(self, x_BSW: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = (
            split_heads(part, self.head_dim) for part in self.qkv_proj(x_BSW).split(self._widths, dim=-1)
        )
        return rotate(queries, rope), rotate(keys, rope), values


class FusedGatedMlp(GatedMlp):
    """Gate and up from one matmul."""

    def __init__(self, unfused: GatedMlp) -> None:
        nn.Module.__init__(self)
        self.gate_up_proj = merge([unfused.gate_proj, unfused.up_proj])
        self.down_proj = unfused.down_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(nn.functional.gelu(gate, approximate="tanh") * up)


class FusedVisionAttention(VisionAttention):
    """SigLIP's queries, keys and values from one matmul."""

    def __init__(self, unfused: VisionAttention) -> None:
        nn.Module.__init__(self)
        self.head_dim = unfused.head_dim
        self.qkv_proj = merge([unfused.q_proj, unfused.k_proj, unfused.v_proj])
        self.out_proj = unfused.out_proj

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv_proj(x).chunk(3, dim=-1)


def _fused(path: str, module: nn.Module) -> nn.Module | None:
    if isinstance(module, Attention):
        return FusedAttention(module)
    if isinstance(module, KeyValue):
        return FusedKeyValue(module)
    if isinstance(module, GatedMlp):
        return FusedGatedMlp(module)
    if isinstance(module, VisionAttention):
        return FusedVisionAttention(module)
    return None
