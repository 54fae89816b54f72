"""FP8 for TensorRT: quantise/dequantise pairs around linears, kept through the compiler, and proven.

TensorRT reads static FP8 from the network: such a pair on the input of a matmul and one on its weight make
it a matmul in FP8. One scale for each tensor, amax / 448 (e4m3).
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optim.rewrite.merge_linears import replace_modules
from optim.tensorrt.cache import SerializedEngine

E4M3 = (8, 4)  # bits, exponent bits: how `quantize_op` is told to use FP8
# Kernels and description of the engines of small networks take 2 to 5 MB (TensorRT-RTX 1.4, three layers).
TELLING_BYTES = 16 << 20


class FlatMlp(nn.Module):
    """An MLP on rows: TensorRT matches its FP8 matmuls on two dimensions only."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class QuantisedLinear(nn.Module):
    """A linear with an FP8 pair on its input and one on its weight, which it shares with the linear.

    Args:
        amax: largest absolute input; larger ones saturate.

    Non-obvious behaviors:
        amax are buffers of one element, not scalars: TensorRT's FP8 scales are per tensor.
    """

    input_amax: Tensor
    weight_amax: Tensor

    def __init__(self, linear: nn.Linear, amax: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        device = linear.weight.device
        weight_amax = linear.weight.detach().abs().max().float().clamp(min=1e-12)
        self.register_buffer("input_amax", torch.full((1,), amax, dtype=torch.float32, device=device))
        self.register_buffer("weight_amax", weight_amax.reshape(1))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2) if x.ndim > 2 else x
        out = F.linear(
            quantise_dequantise(rows, self.input_amax),
            quantise_dequantise(self.weight, self.weight_amax),
            self.bias,
        )
        return out.unflatten(0, x.shape[:-1]) if x.ndim > 2 else out


def quantise_dequantise(x: Tensor, amax: Tensor) -> Tensor:
    """Round x to e4m3 with scale amax / 448, in its own dtype."""
    rounded: Tensor = torch.ops.tensorrt.quantize_op(x, amax, *E4M3, False, False)
    return rounded


def quantised_names(stage: nn.Module, linears: str) -> tuple[str, ...]:
    """Name the layers' linears that become FP8; embeddings and the projector never do.

    Args:
        linears: mlp, or all.
    """
    return tuple(
        name
        for name, module in stage.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("layers.")
        and (linears == "all" or ".mlp." in name)
    )


def with_quantised_linears(stage: nn.Module, amax: Mapping[str, float], linears: str) -> nn.Module:
    """Copy a stage with FP8 pairs around its linears; all weights are shared.

    Raises:
        ValueError: a linear has no calibrated maximum, or one that no scale can be made of.
    """
    names = set(quantised_names(stage, linears))
    for name in sorted(names):
        if name not in amax:
            raise ValueError(f"amax of {name} is missing: it has no calibrated maximum; calibrate again")
        if not 0.0 < amax[name] < float("inf"):
            raise ValueError(f"amax of {name} must be positive and finite, got {amax[name]}; calibrate again")

    def swap(path: str, module: nn.Module) -> nn.Module | None:
        return (
            QuantisedLinear(module, amax[path]) if path in names and isinstance(module, nn.Linear) else None
        )

    def flat(path: str, module: nn.Module) -> nn.Module | None:
        return FlatMlp(module) if path.startswith("layers.") and path.endswith(".mlp") else None

    return replace_modules(replace_modules(stage, swap), flat)


@contextmanager
def unfolded_weights() -> Iterator[None]:
    """Keep Torch-TensorRT from folding the pairs of the weights away while it compiles.

    Non-obvious behaviors:
        A weight is a constant, so constant folding computes its pair beforehand and leaves a rounded bf16
        weight: the engine is right, and not FP8. Torch-TensorRT spares these operators only if both of
        modelopt's are registered, and says nothing otherwise (2.11 `lowering/passes/constant_folding.py`).
        2.14 has a registry of rules for it; in older ones the folder is patched, and put back.
    """
    operator = _operator()
    lowering = importlib.import_module("torch_tensorrt.dynamo.lowering")
    if importlib.util.find_spec(f"{lowering.__name__}.constant_fold_exclusions") is None:
        folder = lowering.passes.constant_folding._TorchTensorRTConstantFolder
        original = folder.is_impure

        def is_impure(self: object, node: torch.fx.Node) -> bool:
            return node.target == operator or bool(original(self, node))

        folder.is_impure = is_impure
        try:
            yield
        finally:
            folder.is_impure = original
        return
    registry = importlib.import_module(f"{lowering.__name__}.constant_fold_exclusions")
    rule = "libero_vla_eval_fp8"
    registry.register_constant_fold_exclusion_rule(rule)(
        lambda node: [node] if node.target == operator else []
    )
    try:
        yield
    finally:
        registry.unregister_constant_fold_exclusion_rule(rule)


@contextmanager
def counted_weights() -> Iterator[list[int]]:
    """Count the FP8 weights of each graph that Torch-TensorRT hands to TensorRT; the list grows meanwhile."""
    interpreter = importlib.import_module("torch_tensorrt.dynamo.conversion._TRTInterpreter")
    counts: list[int] = []

    def count(module: torch.fx.GraphModule) -> None:
        counts.append(count_quantised_weights(module.graph))

    with interpreter.TRT_INTERPRETER_CALL_PRE_OBSERVER.add(count):
        yield counts


def count_quantised_weights(graph: torch.fx.Graph) -> int:
    """Count the constants of a graph that have an FP8 pair."""
    operator = _operator()
    pairs = [node.args[0] for node in graph.nodes if node.target == operator]
    return sum(isinstance(source, torch.fx.Node) and source.op == "get_attr" for source in pairs)


def _operator() -> object:
    return torch.ops.tensorrt.quantize_op.default


@dataclass(frozen=True)
class WeightBytes:
    """What a module's weights take in an engine.

    Attributes:
        fp8_linears: number of linears in FP8.
        fp8_bytes: of their weights, a byte each.
        unquantised_bytes: of the same weights in their own dtype.
        other_bytes: all other parameters, in their own dtypes.
    """

    fp8_linears: int
    fp8_bytes: int
    unquantised_bytes: int
    other_bytes: int

    @property
    def expected(self) -> int:
        """Bytes of all weights, each in the precision that it is to have."""
        return self.fp8_bytes + self.other_bytes

    @property
    def saved(self) -> int:
        """Bytes that FP8 saves."""
        return self.unquantised_bytes - self.fp8_bytes

    @classmethod
    def of(cls, module: nn.Module) -> "WeightBytes":
        """Count the weights of a module with or without `QuantisedLinear`."""
        fp8 = [part.weight for part in module.modules() if isinstance(part, QuantisedLinear)]
        fp8_ids = {id(weight) for weight in fp8}
        others = [weight for weight in module.parameters() if id(weight) not in fp8_ids]
        return cls(
            len(fp8),
            sum(weight.numel() for weight in fp8),
            sum(weight.nbytes for weight in fp8),
            sum(weight.nbytes for weight in others),
        )


def require_fp8(name: str, engine: SerializedEngine, weights: WeightBytes) -> str:
    """Prove that the linears of an engine are FP8, and name the proof.

    The graph that TensorRT was given must quantise every weight. And the engine must be small: besides its
    weights it holds kernels and a description of the network, which may take half of what FP8 saves. Size
    tells nothing where FP8 saves less than `TELLING_BYTES`.

    Raises:
        RuntimeError: they are not.
    """
    if engine.fp8_weights != weights.fp8_linears:
        raise RuntimeError(
            f"{name}'s engine must have {weights.fp8_linears} FP8 weights, got {engine.fp8_weights}: "
            "constant folding took the others; see unfolded_weights in optim/tensorrt/fp8.py"
        )
    if weights.saved < TELLING_BYTES:
        return "graph"
    size, limit = len(engine.plan), weights.expected + weights.saved // 2
    if size > limit:
        raise RuntimeError(
            f"{name}'s engine must have about {weights.expected} bytes with FP8 weights, at most {limit}, "
            f"got {size} ({weights.expected + weights.saved} are expected without FP8): "
            "TensorRT keeps the weights unquantised; choose precision=bf16"
        )
    return "graph and engine size"
