"""Denoise as one persistent kernel: rows are few, so time is weights read and phases waited for.

Compiled PyTorch needs about eleven dependent kernels for a layer of the expert, 180 layers for ten Euler
steps. Here all of them are phases of one kernel, and weights arrive while programs wait for each other. What
depends on t alone is computed once. The residual stream stays float32.

B batch, H horizon, M = B H rows, A action dimensions, P prefix tokens, L layers, D head dimension, E Euler
steps, N norms.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from optim.base import Args, Backend, CountedStage, StageContext
from optim.compile import build_compiled
from optim.core.engines import Build, serve
from optim.core.parity import TOLERANCE
from optim.core.requirements import (
    BF16_CAPABILITY,
    BF16_UNITS,
    require_cuda,
    require_dtype,
    require_triton,
    require_warmup,
)
from optim.cuda_graph import capture_each
from optim.kernels.denoise.contract import (
    Heads,
    Modulations,
    OldChunk,
    PrefixCache,
    Sizes,
    Weights,
    interleave,
    pack_qkv,
)
from optim.kernels.denoise.phases import denoise
from optim.kernels.denoise.ring import denoise_ring, obstacle_on, pack_for_ring
from optim.kernels.denoise.ring_layout import ROWS
from optim.kernels.split_attention import HEAD_DIMS, use_split_attention
from optim.rewrite.merge_linears import fuse, replace_modules
from optim.rewrite.prepared import require_identity
from optim.rewrite.rope import ConsecutivePositions, half_tables
from policies.pi05.denoise import Denoise, ExpertLayer

KERNELS = {"phases": denoise, "ring": denoise_ring}
# The largest number of rows (batch * horizon) for which a persistent kernel is chosen; above, `compile` is.
# At full size and 10 Euler steps on H200s, in several runs: at 10 rows ring 4.0 ms, phases 5.5, compile 8.6;
# at 50 rows phases 11.4, compile 9.4 (docs/results: 2026-11-23_realtime, 2026-11-28_denoise_horizon_50_h200).
# 17 to 49 rows were not measured; phases cuts its work for 16 rows as for 10.
MOST_ROWS = {"ring": ROWS, "phases": 16}
CHOICES = ("auto", *MOST_ROWS, "compile")


class FusedDenoise:
    """`Denoise` as one kernel; its weights are copied.

    Args:
        kernel: of KERNELS; see `choose_kernel`.

    Raises:
        ValueError: sizes that the kernel does not take, or guidance with the exact Jacobian.
    """

    def __init__(self, stage: Denoise, kernel: str) -> None:
        require_identity(stage)
        self._stage = stage
        self._denoise = KERNELS[kernel]
        self._sizes = sizes_of(stage)
        self._positions = ConsecutivePositions(self._sizes.head_dim)
        self._weights = pack(expert_layers(stage))
        out = stage.action_out_proj
        self._heads = Heads(stage.action_in_proj.weight, stage.action_in_proj.bias, out.weight)
        times_E = torch.tensor(stage.timesteps, dtype=torch.float64, device=out.weight.device)
        with torch.no_grad():
            modulations_NEM = stage.modulations(times_E)
            self._modulations = fold(modulations_NEM.transpose(0, 1), self._weights, stage)
        self._steps_2E = stage.guided_steps(out.weight.device)
        if kernel == "ring":
            self._weights = pack_for_ring(self._weights, self._sizes)

    def __call__(
        self,
        noise_BHA: Tensor,
        keys_LB1PD: Tensor,
        values_LB1PD: Tensor,
        prefix_mask_BP: Tensor | None,
        old_2BHA: Tensor | None = None,
    ) -> Tensor:
        """Compute actions_BHA as `Denoise.forward` does; keys, values and old chunk must be contiguous."""
        self._stage.check_old(old_2BHA)
        (batch, horizon, _), tokens, bias = noise_BHA.shape, keys_LB1PD.shape[3], None
        if prefix_mask_BP is None:
            cos, sin = self._positions(tokens, horizon, batch, noise_BHA.device)
        else:
            rope, bias = self._stage.suffix_geometry(noise_BHA, keys_LB1PD, prefix_mask_BP)
            cos, sin = half_tables(rope, batch)
        actions_BHA = noise_BHA.clone(memory_format=torch.contiguous_format)
        prefix = PrefixCache(keys_LB1PD, values_LB1PD, cos, sin, bias)
        old = None if old_2BHA is None else OldChunk(old_2BHA, self._steps_2E)
        self._denoise(actions_BHA, self._heads, self._modulations, self._weights, prefix, self._sizes, old)
        return actions_BHA


def expert_layers(stage: Denoise) -> list[ExpertLayer]:
    """The stage's layers with their type, which `nn.ModuleList` does not keep."""
    return [cast(ExpertLayer, layer) for layer in stage.layers]


def choose_kernel(sizes: Sizes, rows: int, device: torch.device) -> str:
    """Choose the fastest that can run, by `MOST_ROWS`: ring, phases, or what `optim.compile` makes."""
    if rows <= MOST_ROWS["ring"] and obstacle_on(device, sizes, rows) is None:
        return "ring"
    return "phases" if rows <= MOST_ROWS["phases"] else "compile"


def pack(layers: Sequence[ExpertLayer]) -> Weights:
    """Stack the layers' weights in the order of the kernel's columns."""
    packed: dict[str, list[Tensor]] = {"qkv": [], "output": [], "gate_up": [], "down": []}
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = (p.weight.detach() for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        packed["qkv"].append(pack_qkv(q, k, v, attention.head_dim))
        packed["output"].append(attention.o_proj.weight.detach())
        packed["gate_up"].append(interleave(mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()))
        packed["down"].append(mlp.down_proj.weight.detach())
    return Weights(**{f"{name}_LCK": torch.stack(tensors) for name, tensors in packed.items()})


def fold(modulations_ENM: Tensor, weights: Weights, stage: Denoise) -> Modulations:
    """Compute scales, gates and shifts of all norms, each shift taken through the weight that follows."""
    scale_ENW, shift_ENW, gate_ENW = modulations_ENM.chunk(3, dim=-1)
    out = stage.action_out_proj
    return Modulations(
        (1.0 + scale_ENW).contiguous(),
        gate_ENW.contiguous(),
        through(shift_ENW[:, :-1:2], weights.qkv_LCK),
        through(shift_ENW[:, 1::2], weights.gate_up_LCK),
        shift_ENW[:, -1] @ out.weight.T + out.bias,
    )


def through(shift_ELW: Tensor, weight_LCW: Tensor) -> Tensor:
    """Multiply each layer's shifts by its weight: (E, L, C)."""
    layers = zip(shift_ELW.unbind(1), weight_LCW.unbind(0), strict=True)
    return torch.stack([shift_EW @ weight_CW.float().T for shift_EW, weight_CW in layers], dim=1)


def sizes_of(stage: Denoise) -> Sizes:
    """Read the sizes off the stage's linears.

    Raises:
        ValueError: sizes that the kernel does not take; names them and what is supported.
    """
    first = expert_layers(stage)[0]
    attention = first.self_attn
    kv_heads = attention.k_proj.out_features // attention.head_dim
    if kv_heads != 1:
        raise ValueError(f"expert.num_kv_heads must be 1, got {kv_heads}; use optim/denoise=compile")
    if attention.head_dim not in HEAD_DIMS:
        raise ValueError(
            f"expert.head_dim must be one of {HEAD_DIMS}, got {attention.head_dim}; "
            "use optim/denoise=cuda_graph"
        )
    action_dim = stage.action_in_proj.in_features
    if action_dim & (action_dim - 1) or action_dim < 16:
        raise ValueError(
            f"action_dim must be a power of two >= 16, got {action_dim}; use optim/denoise=compile"
        )
    return Sizes(
        stage.action_in_proj.out_features,
        attention.q_proj.out_features // attention.head_dim,
        attention.head_dim,
        first.mlp.down_proj.in_features,
    )


def compile_denoise(stage: Denoise, warmup: int) -> Build:
    """Make a builder of engines as optim/denoise=compile has them."""
    split = replace_modules(fuse(stage), use_split_attention)
    return build_compiled(split, graph=True, warmup=warmup)


@dataclass(frozen=True)
class Fused(Backend):
    """Denoise as one persistent kernel, or compiled where that is faster, captured in a CUDA graph.

    Attributes:
        warmup: runs before the capture, in which Triton compiles.
        kernel: auto: as `choose_kernel` says; ring, phases, compile: that one, for experiments.

    Raises:
        ValueError: an option out of range.
    """

    warmup: int = 3
    kernel: str = "auto"
    jacobians: ClassVar[tuple[str, ...]] = ("identity",)
    compiles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_warmup(self.warmup)
        if self.kernel not in CHOICES:
            raise ValueError(f"kernel must be one of {', '.join(CHOICES)}, got {self.kernel!r}")

    @property
    def serves_batches(self) -> bool:
        """False: a batch has more rows than the ring takes, and no bench shows what serves them to be faster
        than the ring for one request after another."""
        return False

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Refuse what it does not serve.

        Raises:
            RuntimeError: the stage is not denoise, the precision is not bfloat16, or there is no Triton.
            CannotRun: there is no GPU with matrix instructions for bfloat16.
        """
        if name != "denoise":
            raise RuntimeError(f"the fused kernel serves denoise; choose optim/{name}=fused_fp8")
        require_cuda(name, device, BF16_CAPABILITY, BF16_UNITS)
        require_dtype(dtype, torch.bfloat16)
        require_triton()

    def __call__(self, source: StageContext) -> CountedStage:
        """Capture denoise, for each number of rows as `kernel` says."""
        stage = source.stage
        assert isinstance(stage, Denoise)
        sizes = sizes_of(stage)

        @functools.cache
        def capture_with(kernel: str) -> Build:
            if kernel == "compile":
                return compile_denoise(stage, self.warmup)
            return capture_each(FusedDenoise(stage, kernel), warmup=self.warmup)

        def kernel_of(args: Args) -> str:
            noise_BHA = args[0]
            assert noise_BHA is not None
            if self.kernel != "auto":
                return self.kernel
            return choose_kernel(sizes, noise_BHA.shape[0] * noise_BHA.shape[1], noise_BHA.device)

        kernels = dict.fromkeys(kernel_of(args) for args in source.examples)
        return serve(
            source,
            "fused",
            lambda args: capture_with(kernel_of(args))(args),
            tolerance=TOLERANCE["bfloat16"],
            details={"precision": "bfloat16", "kernel": ", ".join(kernels)},
        )
