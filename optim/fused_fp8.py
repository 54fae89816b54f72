"""Vision and prefix in FP8 on cuBLAS's matmuls with fused Triton kernels between them.

What `optim.fp8` leaves to torch.compile is written out here: residual, norm and quantisation are one kernel,
so are activation and quantisation; RoPE writes keys and values where the cache has them; attention gives FP8
to the projection that follows, and the prefix's reads the keys once for all query heads. Building takes
seconds, not a compilation.

B batch, N cameras, Q tokens of one image, S rows, P prefix tokens, W width, L layers, G KV heads, X query
heads, D head dimension.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optim.base import Backend, CountedStage, StageContext
from optim.core.engines import serve
from optim.core.fp8_format import FP8_CAPABILITY
from optim.core.parity import TOLERANCE
from optim.core.requirements import require_cuda, require_dtype, require_triton, require_warmup
from optim.cuda_graph import capture_each
from optim.fp8 import with_fp8_linears
from optim.kernels.flash import flash, image_attention
from optim.kernels.patches import embed_patches
from optim.kernels.rows import Norm, add_norm, geglu, gelu, layer_norm, rope_split
from optim.kernels.split_attention import HEAD_DIMS
from optim.rewrite.rope import ConsecutivePositions, half_tables
from policies.pi05.layers import NORM_EPS, RMSNorm
from policies.pi05.prefix import Prefix
from policies.pi05.vision import Vision


class FusedPrefix:
    """`Prefix` whose layers' linears are FP8.

    Args:
        stage: with FP8 linears (`optim.fp8.with_fp8_linears`).

    Raises:
        ValueError: a head dimension that the kernels do not take.
    """

    def __init__(self, stage: Prefix) -> None:
        if stage.head_dim not in HEAD_DIMS:
            raise ValueError(
                f"prefix.head_dim must be one of {HEAD_DIMS}, got {stage.head_dim}; use optim/prefix=fp8"
            )
        self._stage = stage
        self._layers: list[Any] = list(stage.layers)
        self._norms = [rms_norm(layer.input_layernorm) for layer in self._layers]
        self._mlp_norms = [rms_norm(layer.post_attention_layernorm) for layer in self._layers[:-1]]
        self._positions = ConsecutivePositions(stage.head_dim)

    def __call__(
        self,
        image_tokens_BQW: Tensor,
        image_mask_BN: Tensor | None,
        tokens_BT: Tensor,
        token_mask_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute what `Prefix.forward` does."""
        stage = self._stage
        if image_mask_BN is None and token_mask_BT is None:
            x_BPW, bias, mask_BP = stage.embed(image_tokens_BQW, tokens_BT), None, None
            cos, sin = self._positions(0, x_BPW.shape[1], x_BPW.shape[0], x_BPW.device)
        else:
            x_BPW, tables, bias, mask_BP = stage.prepare(
                image_tokens_BQW, image_mask_BN, tokens_BT, token_mask_BT
            )
            cos, sin = half_tables(tables, x_BPW.shape[0])
        (batch, tokens, _), dim, dtype = x_BPW.shape, stage.head_dim, x_BPW.dtype
        x_SW = x_BPW.flatten(0, 1).contiguous()
        kv_heads = self._layers[-1].self_attn.kv_proj.weight.shape[0] // (2 * dim)
        keys = x_SW.new_empty((len(self._layers), batch, kv_heads, tokens, dim))
        values = torch.empty_like(keys)
        delta = None
        for i, layer in enumerate(self._layers[:-1]):
            attention, mlp = layer.self_attn, layer.mlp
            rows8 = add_norm(x_SW, delta, self._norms[i], attention.qkv_proj.inverse_input_scale)
            qkv = attention.qkv_proj.matmul(rows8, dtype)
            heads = qkv.shape[1] // dim - 2 * kv_heads
            queries = x_SW.new_empty((batch, heads, tokens, dim))
            rope_split(qkv, (cos, sin), queries, keys[i], values[i])
            rows8 = flash(queries, keys[i], values[i], bias, attention.o_proj.inverse_input_scale)
            delta = attention.o_proj.matmul(rows8, dtype)
            rows8 = add_norm(x_SW, delta, self._mlp_norms[i], mlp.gate_up_proj.inverse_input_scale)
            rows8 = geglu(mlp.gate_up_proj.matmul(rows8, dtype), mlp.down_proj.inverse_input_scale)
            delta = mlp.down_proj.matmul(rows8, dtype)
        kv_proj = self._layers[-1].self_attn.kv_proj
        rows8 = add_norm(x_SW, delta, self._norms[-1], kv_proj.inverse_input_scale)
        rope_split(kv_proj.matmul(rows8, dtype), (cos, sin), None, keys[-1], values[-1])
        return keys, values, mask_BP


class FusedVision:
    """`Vision` whose layers' linears are FP8.

    Args:
        stage: with FP8 linears (`optim.fp8.with_fp8_linears`).
    """

    def __init__(self, stage: Vision) -> None:
        self._stage = stage
        self._layers: list[Any] = list(stage.layers)
        self._norms = [
            (layer_norm(layer.layer_norm1), layer_norm(layer.layer_norm2)) for layer in self._layers
        ]
        self._last_norm = layer_norm(stage.post_layernorm)

    def __call__(self, images_BNCHW: Tensor) -> Tensor:
        """Compute what `Vision.forward` does."""
        stage = self._stage
        dtype = stage.projector.weight.dtype
        x = embed_patches(stage.embeddings, images_BNCHW.flatten(0, 1), dtype)
        images, tokens, _ = x.shape
        x_SW = x.flatten(0, 1)
        delta = None
        for layer, (norm1, norm2) in zip(self._layers, self._norms, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            rows8 = add_norm(x_SW, delta, norm1, attention.qkv_proj.inverse_input_scale)
            qkv = attention.qkv_proj.matmul(rows8, dtype)
            rows8 = image_attention(qkv, images, attention.head_dim, attention.out_proj.inverse_input_scale)
            delta = attention.out_proj.matmul(rows8, dtype)
            rows8 = add_norm(x_SW, delta, norm2, mlp.fc1.inverse_input_scale)
            rows8 = gelu(mlp.fc1.matmul(rows8, dtype), mlp.fc2.inverse_input_scale)
            delta = mlp.fc2.matmul(rows8, dtype)
        tokens_SD = stage.projector(add_norm(x_SW, delta, self._last_norm, None))
        return tokens_SD.unflatten(0, (images, tokens)).unflatten(0, images_BNCHW.shape[:2]).flatten(1, 2)


def rms_norm(module: RMSNorm) -> Norm:
    """Take an RMS norm's weights as the kernels read them: 1 + w, float32."""
    return Norm(1.0 + module.weight.detach().float(), None, NORM_EPS)


@dataclass(frozen=True)
class FusedFp8(Backend):
    """Vision or prefix in FP8 on fused kernels, captured in a CUDA graph.

    Attributes:
        warmup: runs before the capture, in which Triton compiles.

    Raises:
        ValueError: `warmup` is below 1.
    """

    warmup: int = 3
    needs_amax: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_warmup(self.warmup)

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Refuse what it does not serve.

        Raises:
            RuntimeError: the stage is denoise, the precision is not bfloat16, or there is no Triton.
            CannotRun: there is no GPU that has FP8.
        """
        if name == "denoise":
            raise RuntimeError("fused FP8 kernels serve vision and prefix; choose optim/denoise=fused")
        require_cuda(name, device, FP8_CAPABILITY, "FP8")
        require_dtype(dtype, torch.bfloat16)
        require_triton()

    def __call__(self, source: StageContext) -> CountedStage:
        engine = fused_stage(with_fp8_linears(source.stage, source.amax, "all"))
        return serve(
            source,
            "fused_fp8",
            capture_each(engine, warmup=self.warmup),
            tolerance=TOLERANCE["fp8"],
            details={"precision": "fp8"},
        )


def fused_stage(stage: nn.Module) -> FusedPrefix | FusedVision:
    """Put a stage with FP8 linears on fused kernels."""
    if isinstance(stage, Prefix):
        return FusedPrefix(stage)
    assert isinstance(stage, Vision)
    return FusedVision(stage)
