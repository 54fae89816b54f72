"""FP8 linears through `torch._scaled_mm`: static scales, quantisation fused into what comes before.

Weights and activations are e4m3 with one scale for each tensor; sums are float32 (fast accumulation, as
tensor cores give it), outputs the policy's dtype. The stage is compiled, which fuses the quantisation into
norm and GEGLU, and replayed in a CUDA graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from optim.base import Backend, CountedStage, StageContext
from optim.compile import build_compiled
from optim.core.engines import serve
from optim.core.fp8_format import FP8_CAPABILITY, FP8_MAX, quantise
from optim.core.parity import TOLERANCE
from optim.core.requirements import require_cuda, require_dtype, require_warmup
from optim.rewrite.merge_linears import INPUT_OF, fuse, replace_modules

LINEARS = ("all", "mlp")
MULTIPLE = 16  # `_scaled_mm` wants both sides of a weight to be multiples of it


class Fp8Linear(nn.Module):
    """A linear whose weight is stored, and whose input is cast, in FP8.

    Args:
        linear: its weight is copied; N and K must be multiples of 16.
        amax: largest absolute input; larger ones saturate.

    Raises:
        ValueError: sizes that the FP8 matmul does not take.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    inverse_input_scale: Tensor

    def __init__(self, linear: nn.Linear, amax: float) -> None:
        super().__init__()
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            raise ValueError(
                f"an FP8 linear needs multiples of {MULTIPLE}, got {linear.in_features} in and "
                f"{linear.out_features} out; keep this stage in bfloat16"
            )
        weight = linear.weight.detach().float()
        scale = weight.abs().max().clamp(min=1e-12) / FP8_MAX
        self.register_buffer("weight", quantise(weight, 1.0 / scale))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", torch.full_like(scale, amax / FP8_MAX))
        self.register_buffer("inverse_input_scale", torch.full_like(scale, FP8_MAX / amax))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows8 = quantise(x.flatten(0, -2), self.inverse_input_scale)
        return self.matmul(rows8, x.dtype).unflatten(0, x.shape[:-1])

    def matmul(self, rows8: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply rows that are quantised already, by `inverse_input_scale`."""
        return torch._scaled_mm(
            rows8,
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=dtype,
            use_fast_accum=True,
        )


def with_fp8_linears(stage: nn.Module, amax: Mapping[str, float], linears: str) -> nn.Module:
    """Fuse a stage and make its layers' linears FP8; embeddings and the projector stay as they are.

    Args:
        amax: of the unfused stage's linears, by name.
        linears: all, or mlp alone.

    Raises:
        ValueError: a linear has no calibrated maximum.
    """

    def swap(path: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Linear) or not path.startswith("layers."):
            return None
        if linears == "mlp" and ".mlp." not in path:
            return None
        parent, _, name = path.rpartition(".")
        original = f"{parent}.{INPUT_OF.get(name, name)}"
        if original not in amax:
            raise ValueError(f"no calibrated maximum for the input of {original}, there are {sorted(amax)}")
        return Fp8Linear(module, amax[original])

    return replace_modules(fuse(stage), swap)


@dataclass(frozen=True)
class Fp8(Backend):
    """FP8 linears in vision or prefix, compiled and captured.

    Attributes:
        linears: all, or mlp: projections of attention stay in bfloat16.
        warmup: runs before the capture.

    Raises:
        ValueError: an option out of range.
    """

    linears: str = "all"
    warmup: int = 3
    needs_amax: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.linears not in LINEARS:
            raise ValueError(f"linears must be one of {', '.join(LINEARS)}, got {self.linears!r}")
        require_warmup(self.warmup)

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Refuse what it does not serve.

        Raises:
            RuntimeError: the stage is denoise, or the precision is not bfloat16.
            CannotRun: there is no GPU that has FP8.
        """
        if name == "denoise":
            raise RuntimeError("FP8 serves vision and prefix; choose optim/denoise=compile")
        require_cuda(name, device, FP8_CAPABILITY, "FP8")
        require_dtype(dtype, torch.bfloat16)

    def __call__(self, source: StageContext) -> CountedStage:
        stage = with_fp8_linears(source.stage, source.amax, self.linears)
        counted = [module for module in stage.modules() if isinstance(module, Fp8Linear)]
        return serve(
            source,
            "fp8",
            build_compiled(stage, graph=True, warmup=self.warmup),
            tolerance=TOLERANCE["fp8"],
            details={
                "precision": "fp8",
                "linears": self.linears,
                "fp8_linears": len(counted),
                "fp8_weights": sum(module.weight.numel() for module in counted),
            },
        )
