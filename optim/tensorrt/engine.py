"""TensorRT engines through Torch-TensorRT: a module in, a serialized engine out, and back into a module.

Torch-TensorRT is imported when it is needed: it is optional, and takes seconds.
"""

import importlib
import operator
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from optim.tensorrt.cache import SerializedEngine
from optim.tensorrt.fp8 import counted_weights, unfolded_weights


class EngineModule(nn.Module):
    """An engine in place of the module that it was made of.

    Args:
        engine: what to run.
        device: where; the engine was built for it.
    """

    def __init__(self, engine: SerializedEngine, device: torch.device) -> None:
        super().__init__()
        self._input_indices, self._output_indices = engine.input_indices, engine.output_indices
        self._runtime = [
            _runtime_module(engine, device)
        ]  # a list: no submodule, its weights are no parameters

    def forward(self, *args: Tensor) -> Any:
        results = self._runtime[0](*(args[i].contiguous() for i in self._input_indices))
        outputs = [results] if isinstance(results, Tensor) else results
        picked = tuple(outputs[i] for i in self._output_indices)
        return picked[0] if len(picked) == 1 else picked


def build_engine(
    module: nn.Module,
    args: tuple[Tensor, ...],
    *,
    fp8: bool = False,
) -> SerializedEngine:
    """Compile a module for arguments like these, each operation in the dtype in which PyTorch computes it.

    Args:
        fp8: whether it has `optim.tensorrt.fp8.QuantisedLinear`s.

    Raises:
        RuntimeError: a part of it would stay in PyTorch.
    """
    compiler = importlib.import_module("torch_tensorrt")
    args = tuple(arg.contiguous() for arg in args)  # TensorRT knows no other strides of five dimensions
    program = torch.export.export(module, args)
    counts: list[int] = []
    with ExitStack() as stack:
        if fp8:
            stack.enter_context(unfolded_weights())
            counts = stack.enter_context(counted_weights())
        # the default timing cache is one file for all processes, written in place
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        compiled = compiler.dynamo.compile(
            program,
            arg_inputs=list(args),
            device=args[0].device,
            # float32 parts of a stage are float32 because TF32 is too coarse for them
            disable_tf32=True,
            require_full_compilation=True,
            # True is the default, and makes every attention that has a mask causal
            attn_bias_is_causal=False,
            timing_cache_path=str(Path(folder) / "timing_cache.bin"),
        )
    return _extract(compiled, sum(counts))


def flavour() -> str:
    """Name the TensorRT that Torch-TensorRT uses, and its version."""
    compiler = importlib.import_module("torch_tensorrt")
    tensorrt = importlib.import_module("tensorrt")  # after it, because it decides which one this is
    name = "TensorRT-RTX" if compiler.ENABLED_FEATURES.tensorrt_rtx else "TensorRT"
    return f"{name} {tensorrt.__version__}"


def runtime() -> str:
    """Name what executes engines: cpp, or python where Torch-TensorRT's C++ libraries are absent."""
    compiler = importlib.import_module("torch_tensorrt")
    return "cpp" if compiler.ENABLED_FEATURES.torch_tensorrt_runtime else "python"


def _runtime_module(engine: SerializedEngine, device: torch.device) -> nn.Module:
    compiler = importlib.import_module("torch_tensorrt")
    runtimes = compiler.dynamo.runtime
    # 2.11 has a class for each runtime, 2.14 one for both
    kind = runtimes.TorchTensorRTModule
    if runtime() == "python":
        kind = getattr(runtimes, "PythonTorchTensorRTModule", kind)
    index = torch.cuda.current_device() if device.index is None else device.index
    module: nn.Module = kind(
        engine.plan,
        list(engine.input_names),
        list(engine.output_names),
        name="engine",
        settings=compiler.dynamo.CompilationSettings(device=compiler.Device(gpu_id=index)),
    )
    return module


def _extract(compiled: fx.GraphModule, fp8_weights: int) -> SerializedEngine:
    """Take the one engine out of a compiled module.

    Raises:
        RuntimeError: there is more than one, or anything beside it.
    """
    input_indices, output_indices, target = wiring(compiled.graph)
    module: Any = compiled.get_submodule(target)
    if not getattr(module, "serialized_engine", None):
        raise RuntimeError(f"{target} must be a TensorRT engine, got {type(module).__name__}")
    if getattr(module, "requires_output_allocator", False):
        raise RuntimeError(f"{target} has outputs whose shapes depend on data; no CUDA graph can hold it")
    names = [
        tuple(getattr(module, f"{kind}_binding_names", None) or getattr(module, f"{kind}_names"))
        for kind in ("input", "output")
    ]
    plan = bytes(module.serialized_engine)
    return SerializedEngine(plan, names[0], input_indices, names[1], output_indices, fp8_weights)


def wiring(graph: fx.Graph) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Read how a compiled graph uses its engine.

    Returns:
        For each input of the engine the argument of the graph that it is, for each result of the graph the
        output of the engine that it is, and the engine's name.

    Raises:
        RuntimeError: the graph is more than one engine with its arguments and results.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    # `_guards_fn` checks the shapes of arguments, as `optim.core.engines` does
    engines = [node for node in graph.nodes if node.op == "call_module" and node.target != "_guards_fn"]
    picks = [node for node in graph.nodes if node.target is operator.getitem]
    known = {*placeholders, *engines, *picks}
    others = [
        node.name
        for node in graph.nodes
        if node not in known and node.op != "output" and node.target != "_guards_fn"
    ]
    if len(engines) != 1 or others:
        raise RuntimeError(
            f"TensorRT must take the module whole, got {len(engines)} subgraphs and, in PyTorch, {others}"
        )
    (engine,) = engines
    results = next(node for node in graph.nodes if node.op == "output").args[0]
    nodes: Sequence[fx.Node] = results if isinstance(results, tuple | list) else (results,)
    outputs = []
    for node in nodes:
        if node is engine:
            outputs.append(0)
        elif node in picks and node.args[0] is engine:
            outputs.append(int(str(node.args[1])))
        else:
            raise RuntimeError(f"result {node} must come from the engine {engine.target}")
    return tuple(placeholders.index(arg) for arg in engine.args), tuple(outputs), str(engine.target)
