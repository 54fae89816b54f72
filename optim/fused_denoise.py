"""Denoise in six Triton kernels a layer: rows are few, so time is weights read and kernels launched.

Compiled PyTorch needs about eleven dependent kernels for a layer of the expert. Here adaRMS, projection,
RoPE and the writing of keys and values are one; attention is two (`optim.fused_attention`); output
projection, gate and residual one; adaRMS, gate, up and GEGLU one; down projection, gate and residual one.
What depends on t alone is computed once. The residual stream stays float32.

B batch, H horizon, M = B H rows, A padded action dims, P prefix tokens, L layers, G KV heads, D head
dimension, K Euler steps, W width, F MLP width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from optim.base import CountedStage, Pass, StageSource
from optim.cuda_graph import capture
from optim.engines import serve
from optim.fused_attention import HEAD_DIMS, attend_split
from optim.fused_denoise_ops import (
    Modulation,
    Weight,
    action_in,
    add_residual,
    euler_step,
    gate_up,
    interleave,
    launch_for,
    pack_qkv,
    power_of_two_within,
    qkv,
)
from optim.parity import TOLERANCE
from optim.requirements import require_cuda, require_dtype, require_triton, require_warmup
from policies.pi05.denoise import Denoise, ExpertLayer

WEIGHTS = ("bf16", "fp8")


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights as the kernels read them; see `optim.fused_denoise_ops`."""

    qkv: Weight
    output: Weight
    gate_up: Weight
    down: Weight


class FusedDenoise:
    """`Denoise` on fused kernels; its weights are copied.

    Args:
        weights: bf16, as the stage has them, or fp8.
        overlap: launch kernels before those that they wait for have ended, where the GPU can.

    Raises:
        ValueError: sizes that the kernels do not take.
    """

    def __init__(self, stage: Denoise, *, weights: str = "bf16", overlap: bool = False) -> None:
        require_sizes(stage)
        self._launch = launch_for(stage.action_in_proj.weight.device, overlap=overlap)
        self._stage = stage
        self._layers = [pack_layer(layer, weights) for layer in expert_layers(stage)]
        out = stage.action_out_proj
        following = [weight for packed in self._layers for weight in (packed.qkv, packed.gate_up)]
        times_K = torch.tensor(stage.timesteps, dtype=torch.float64, device=out.weight.device)
        with torch.no_grad():
            modulations_KNM = stage.modulations(times_K).transpose(0, 1)
            self._modulations = [
                fold_step(modulations_NM, following, out) for modulations_NM in modulations_KNM
            ]

    def __call__(
        self, noise_BHA: Tensor, keys_LBGPD: Tensor, values_LBGPD: Tensor, prefix_mask_BP: Tensor | None
    ) -> Tensor:
        """Return actions_BHA as `Denoise.forward` does.

        Raises:
            ValueError: more than 64 rows.
        """
        stage, launch = self._stage, self._launch
        batch, horizon, action_dim = noise_BHA.shape
        rows, dim = batch * horizon, stage.head_dim
        rope, bias = stage.suffix_geometry(noise_BHA, keys_LBGPD, prefix_mask_BP)
        cos, sin = (
            table[..., : dim // 2].expand(batch, 1, horizon, dim // 2).reshape(rows, dim // 2).contiguous()
            for table in rope
        )
        actions_MA = noise_BHA.reshape(rows, action_dim).clone()
        like = keys_LBGPD
        heads = self._layers[0].output.values_NK.shape[1] // dim
        x_MW = actions_MA.new_empty((rows, stage.action_in_proj.out_features))
        queries = like.new_empty((batch, heads, horizon, dim))
        keys, values = (like.new_empty((batch, 1, horizon, dim)) for _ in range(2))
        hidden_MF = like.new_empty((rows, self._layers[0].down.values_NK.shape[1]))
        dt = -1.0 / len(stage.timesteps)
        for of_step in self._modulations:
            action_in(actions_MA, stage.action_in_proj.weight, stage.action_in_proj.bias, x_MW, launch)
            for i, weights in enumerate(self._layers):
                attention, mlp = of_step[2 * i], of_step[2 * i + 1]
                qkv(x_MW, attention, weights.qkv, (cos, sin), (queries, keys, values), launch)
                attended = attend_split(
                    queries, keys_LBGPD[i], values_LBGPD[i], keys, values, bias, overlap=launch.overlap
                )
                add_residual(attended.view(rows, heads * dim), weights.output, attention.gate_W, x_MW, launch)
                gate_up(x_MW, mlp, weights.gate_up, hidden_MF, launch)
                add_residual(hidden_MF, weights.down, mlp.gate_W, x_MW, launch)
            euler_step(x_MW, of_step[-1], stage.action_out_proj.weight, dt, actions_MA, launch)
        return actions_MA.view(batch, horizon, action_dim)


def expert_layers(stage: Denoise) -> list[ExpertLayer]:
    """Return the stage's layers."""
    return [cast(ExpertLayer, layer) for layer in stage.layers]


def fold_step(modulations_NM: Tensor, following: Sequence[Weight], out: nn.Linear) -> list[Modulation]:
    """Return the modulations of all norms at one t.

    Args:
        following: the weight after each norm but the last.
        out: what follows the last norm.
    """
    folded = [
        fold(modulation_M, weight.dense())
        for modulation_M, weight in zip(modulations_NM[:-1], following, strict=True)
    ]
    last = fold(modulations_NM[-1], out.weight)
    return [*folded, replace(last, shifted_N=last.shifted_N + out.bias)]


def fold(modulation_M: Tensor, weight_NW: Tensor) -> Modulation:
    """Return one norm's modulation at one t, its shift taken through the weight that follows."""
    scale_W, shift_W, gate_W = modulation_M.flatten().chunk(3)
    return Modulation((1.0 + scale_W).contiguous(), weight_NW @ shift_W, gate_W.contiguous())


def pack_layer(layer: ExpertLayer, weights: str) -> LayerWeights:
    """Return a layer's weights side by side, in the order of the kernels' columns; `weights`: bf16 or fp8."""
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v = (p.weight.detach() for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    packed = (
        pack_qkv(q, k, v, attention.head_dim),
        attention.o_proj.weight.detach(),
        interleave(mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()).contiguous(),
        mlp.down_proj.weight.detach(),
    )
    return LayerWeights(*map(Weight.in_fp8 if weights == "fp8" else Weight, packed))


def require_sizes(stage: Denoise) -> None:
    """Raise ValueError for sizes that the kernels do not take; names them and what is supported."""
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
    power_of_two_within(16, stage.action_in_proj.out_features, "expert.width")
    power_of_two_within(16, first.mlp.down_proj.in_features, "expert.mlp_dim")


@dataclass(frozen=True)
class Fused(Pass):
    """Denoise on fused Triton kernels, captured in a CUDA graph.

    Attributes:
        warmup: runs before the capture, in which Triton compiles.
        weights: bf16, or fp8: half the bytes, rounded with a scale for each output; activations stay bf16.
        overlap: launch kernels before those that they wait for have ended (Hopper and later; elsewhere it
            changes nothing).

    Raises:
        ValueError: an option out of range.
    """

    warmup: int = 3
    weights: str = "bf16"
    overlap: bool = True

    def __post_init__(self) -> None:
        require_warmup(self.warmup)
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Raise RuntimeError for another stage, without a GPU or Triton, or in a precision but bfloat16."""
        if name != "denoise":
            raise RuntimeError(f"fused kernels serve denoise; choose optim/{name}=fused_fp8")
        require_cuda(name, device)
        require_dtype(dtype, torch.bfloat16)
        require_triton()

    def __call__(self, source: StageSource) -> CountedStage:
        """Return the denoise stage on fused kernels."""
        stage = source.stage
        assert isinstance(stage, Denoise)
        fused = FusedDenoise(stage, weights=self.weights, overlap=self.overlap)
        pool = torch.cuda.graph_pool_handle()
        return serve(
            source,
            "fused",
            lambda args: capture(fused, args, warmup=self.warmup, pool=pool),
            tolerance=TOLERANCE["fp8" if self.weights == "fp8" else "bfloat16"],
            details={"precision": "bfloat16", "weights": self.weights, "overlap": self.overlap},
        )
