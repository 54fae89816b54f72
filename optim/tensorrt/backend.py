"""Torch-TensorRT: one stage in, one engine out; fp16, bf16 or calibrated fp8, typed explicitly.

The module is cast, exported and compiled, without ONNX in between. An operation has the precision that the
module says, which is never a choice of the builder.

B batch, P prefix tokens, L layers, G KV heads, D head dimension.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optim.base import Args, Backend, CountedStage, StageContext
from optim.core.engines import serve
from optim.core.fp8_format import FP8_CAPABILITY
from optim.core.parity import TOLERANCE
from optim.core.requirements import require_cuda, require_dtype
from optim.core.scales import FP16_MAX
from optim.cuda_graph import capture
from optim.fp8 import LINEARS
from optim.tensorrt.cache import EngineCache
from optim.tensorrt.engine import EngineModule, build_engine, flavour, runtime
from optim.tensorrt.fp8 import WeightBytes, quantised_names, require_fp8, with_quantised_linears
from optim.tensorrt.modules import PrefixCore, VisionCore, cast_linears, prefix_inputs
from policies.files import OUTPUTS
from policies.pi05.prefix import Prefix

PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "fp8": "fp8"}  # option -> name in `optim.core.parity`
SERVED_STAGES = ("vision", "prefix")
INSTALL = 'pip install -c constraints.txt -e ".[trt]" --extra-index-url https://pypi.nvidia.com'


@dataclass(frozen=True)
class TensorRT(Backend):
    """Compile vision or prefix to TensorRT engines for its shapes.

    Attributes:
        precision: fp16 (vision only), bf16, or fp8: static scales for the linears that `fp8_linears` names,
            bf16 for the rest.
        fp8_linears: mlp, or all linears of the layers; with precision=fp8 only.
        cuda_graph: replay the stage in a CUDA graph.
        cache_dir: where engines are kept, relative to the repository; None keeps none.

    Raises:
        ValueError: an option out of range.

    Non-obvious behaviors:
        Token embeddings, masks and RoPE tables of the prefix are computed in PyTorch: the table of embeddings
        is a gather, and the engine has no integers.
    """

    precision: str
    fp8_linears: str = "mlp"
    cuda_graph: bool = True
    cache_dir: str | None = "outputs/engines"

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, tuple(PRECISIONS))
        _check_choice("fp8_linears", self.fp8_linears, LINEARS)
        if self.fp8_linears != "mlp" and self.precision != "fp8":
            raise ValueError(
                f"fp8_linears={self.fp8_linears} needs precision=fp8, got precision={self.precision}; "
                "leave fp8_linears out"
            )
        if self.cache_dir == "":
            raise ValueError("cache_dir must be a folder or null, got ''; null keeps no engines")

    @property
    def needs_amax(self) -> bool:
        """Whether it reads `StageContext.amax`: FP8 for its scales, fp16 for its range."""
        return self.precision in ("fp8", "fp16")

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Refuse what it does not serve.

        Raises:
            RuntimeError: the stage or its precision is not supported, or a package is missing.
            CannotRun: there is no NVIDIA GPU, or FP8 is asked of one that lacks it.
        """
        self._check_stage(name)
        capability = FP8_CAPABILITY if self.precision == "fp8" else (0, 0)
        require_cuda(name, device, capability, "TensorRT in FP8")
        if self.precision != "fp16":
            require_dtype(dtype, torch.bfloat16)
        missing = []
        if not _installed("torch_tensorrt"):
            missing.append("torch-tensorrt")
        if not _installed("tensorrt") and not _installed("tensorrt_rtx"):
            missing.append("tensorrt")
        if self.precision == "fp8" and not _has_quantize_op():
            missing.append("nvidia-modelopt")
        if missing:
            raise RuntimeError(f"TensorRT needs {', '.join(missing)}; {INSTALL}")

    def __call__(self, source: StageContext) -> CountedStage:
        """Build or load an engine for each combination of shapes."""
        self._check_stage(source.name)
        if self.cache_dir is not None and not source.weights_sha256:
            raise ValueError(
                "an engine without its weights' SHA-256 cannot be found again; set cache_dir=null"
            )
        if self.precision == "fp8" and not _has_quantize_op():
            raise RuntimeError(f"TensorRT in FP8 needs nvidia-modelopt; {INSTALL}")
        if self.precision == "fp16":
            _require_fp16_range(source.amax)
        builder = _Builder(self, source)
        return serve(
            source,
            "tensorrt",
            builder.build,
            tolerance=TOLERANCE[PRECISIONS[self.precision]],
            details=builder.details,
        )

    def _check_stage(self, name: str) -> None:
        if name not in SERVED_STAGES:
            raise RuntimeError(
                f"TensorRT supports vision and prefix, got {name}; choose another backend for it"
            )
        if name == "prefix" and self.precision == "fp16":
            raise RuntimeError("the prefix overflows in fp16; choose precision=bf16")


class _Builder:
    """Builds the engines of one stage; `details` says what they are."""

    def __init__(self, options: TensorRT, source: StageContext) -> None:
        self.options = options
        self.source = source
        self.fp8 = options.precision == "fp8"
        self.cache = None if options.cache_dir is None else EngineCache(OUTPUTS.parent / options.cache_dir)
        self.pool: Any = torch.cuda.graph_pool_handle() if options.cuda_graph else None
        stage = source.stage
        if self.fp8:
            stage = with_quantised_linears(stage, source.amax, options.fp8_linears)
        self.core = self._core(stage)
        self.details: dict[str, Any] = {
            "precision": options.precision,
            "fp8_linears": len(quantised_names(source.stage, options.fp8_linears)) if self.fp8 else 0,
            "cuda_graph": options.cuda_graph,
            "flavour": flavour(),
            "runtime": runtime(),
            "subgraphs": 0,
            "subgraphs_in_pytorch": 0,  # anything else is an error while building
            "cache_hits": 0,
            "engine_bytes": 0,
            "weight_bytes": 0,
        }

    def build(self, args: Args) -> Callable[..., Any]:
        """Build what serves calls like this one."""
        device = next(arg.device for arg in args if arg is not None)
        with torch.cuda.device(device):
            function = self._function(self._engine(self._core_args(args)))
            if not self.options.cuda_graph:
                return function
            return capture(function, args, pool=self.pool)

    def _core(self, stage: nn.Module) -> nn.Module:
        if self.source.name == "prefix":
            return PrefixCore(stage)
        projector: Any = self.source.stage.projector
        dtype = torch.float16 if self.options.precision == "fp16" else projector.weight.dtype
        return VisionCore(cast_linears(stage, dtype) if not self.fp8 else stage, projector.weight.dtype)

    def _core_args(self, args: Args) -> tuple[Tensor, ...]:
        if self.source.name == "vision":
            return tuple(arg for arg in args if arg is not None)
        return prefix_inputs(_as_prefix(self.source.stage), *args)[0]

    def _function(self, core: nn.Module) -> Callable[..., Any]:
        if self.source.name == "vision":
            return core
        stage = _as_prefix(self.source.stage)

        def prefix(*args: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
            core_args, mask_BP = prefix_inputs(stage, *args)
            keys_LBGPD, values_LBGPD = core(*core_args)
            return keys_LBGPD, values_LBGPD, mask_BP

        return prefix

    def _engine(self, args: tuple[Tensor, ...]) -> EngineModule:
        """Load or build the core's engine for arguments like these."""
        environment = environment_of(args[0].device)
        ingredients = engine_ingredients(self.options, self.source, args, environment)
        engine = self.cache.load(ingredients) if self.cache else None
        self.details["cache_hits"] += engine is not None
        weights = WeightBytes.of(self.core)
        built = engine is None
        if engine is None:
            engine = build_engine(self.core, args, fp8=self.fp8)
        if weights.fp8_linears:
            self.details["fp8_proof"] = require_fp8(self.source.name, engine, weights)
        if built and self.cache:
            self.cache.store(ingredients, engine)
        self.details["subgraphs"] += 1
        self.details["engine_bytes"] += len(engine.plan)
        self.details["weight_bytes"] += weights.expected
        return EngineModule(engine, args[0].device)


def engine_ingredients(
    options: TensorRT,
    source: StageContext,
    inputs: tuple[Tensor, ...],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect all that an engine depends on; not where it is kept or how it is called.

    Args:
        inputs: of the engine.
        environment: see `environment_of`.
    """
    names = quantised_names(source.stage, options.fp8_linears) if options.precision == "fp8" else ()
    return {
        "weights_sha256": source.weights_sha256,
        "stage": source.name,
        "part": "stage",  # with the next two, engines that older versions built are found
        "granularity": "stage",
        "optimization_level": None,
        "dtypes": sorted({str(weight.dtype) for weight in source.stage.parameters()}),
        "inputs": [[list(arg.shape), str(arg.dtype)] for arg in inputs],
        "precision": options.precision,
        "fp8_linears": options.fp8_linears,
        "amax": {name: source.amax[name] for name in names},
        "environment": dict(environment),
    }


def environment_of(device: torch.device) -> dict[str, Any]:
    """Read the versions and the GPU that an engine depends on."""
    compiler = importlib.import_module("torch_tensorrt")
    return {
        "torch": torch.__version__,
        "torch_tensorrt": compiler.__version__,
        "tensorrt": flavour(),
        "gpu": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
    }


def _as_prefix(stage: nn.Module) -> Prefix:
    assert isinstance(stage, Prefix)
    return stage


def _require_fp16_range(amax: Mapping[str, float]) -> None:
    for name, largest in amax.items():
        if not largest < FP16_MAX:
            raise ValueError(
                f"{name} reads numbers up to {largest}, above fp16's {FP16_MAX}; choose precision=bf16"
            )


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _has_quantize_op() -> bool:
    """Whether modelopt is installed, or its operator registered otherwise."""
    return _installed("modelopt") or hasattr(torch.ops.tensorrt, "quantize_op")
