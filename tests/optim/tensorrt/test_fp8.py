"""FP8 pairs around linears meet the stage, and are proven; constant folding leaves them alone."""

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from optim.base import StageContext
from optim.core.parity import ParityError, compare, require_parity, stage_parity
from optim.tensorrt.fp8 import (
    QuantisedLinear,
    WeightBytes,
    count_quantised_weights,
    quantised_names,
    require_fp8,
    unfolded_weights,
    with_quantised_linears,
)
from optim.tensorrt.modules import PrefixCore, prefix_inputs
from tests.optim.tensorrt.engines import ENGINE, serve_prefix


def test_quantised_linear_rounds_input_and_weight_to_e4m3(quantize_op: None) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        quantised = QuantisedLinear(linear, x.abs().max().item())
        out = quantised(x)
        error = compare(out, linear(x)).rel_error
        assert out.shape == (2, 3, 32)
        assert 0.005 < error < 0.06  # e4m3 has 3 bits of mantissa
        assert compare(QuantisedLinear(linear, 0.1)(x), linear(x)).rel_error > 0.5  # saturates
    assert quantised.weight is linear.weight
    assert [buffer.shape for buffer in quantised.buffers()] == [(1,), (1,)]


@pytest.mark.parametrize(("linears", "count"), [("mlp", 2 * 3), ("all", 2 * 7 + 2)])
def test_quantised_prefix_meets_the_stage_unless_its_scales_are_broken(
    linears: str, count: int, quantize_op: None, small_sources: dict[str, StageContext]
) -> None:
    source = small_sources["prefix"]
    keys = list(source.stage.state_dict())
    stage = with_quantised_linears(source.stage, source.amax, linears)
    assert sum(isinstance(module, QuantisedLinear) for module in stage.modules()) == count
    parity = require_parity(serve_prefix(source, stage), source.stage, source.examples, 0.2)
    assert parity.rel_error > 1e-3
    assert list(source.stage.state_dict()) == keys
    broken = {name: value / 64 for name, value in source.amax.items()}
    with pytest.raises(ParityError, match="the engine computes something else"):
        require_parity(
            serve_prefix(source, with_quantised_linears(source.stage, broken, linears)),
            source.stage,
            source.examples,
            0.2,
        )


def test_quantised_vision_meets_the_stage(quantize_op: None, small_sources: dict[str, StageContext]) -> None:
    source = small_sources["vision"]
    assert "projector" not in quantised_names(source.stage, "all")
    stage = with_quantised_linears(source.stage, source.amax, "mlp")
    with torch.no_grad():
        for args in source.examples:
            assert stage_parity(stage(*args), source.stage(*args)).rel_error < 0.2


@pytest.mark.parametrize("broken", [None, 0.0, float("inf"), float("nan")])
def test_missing_or_impossible_amax_is_an_error_that_names_the_linear(
    broken: float | None, small_sources: dict[str, StageContext]
) -> None:
    source = small_sources["prefix"]
    amax = dict(source.amax)
    del amax["layers.1.mlp.up_proj"]
    if broken is not None:
        amax["layers.1.mlp.up_proj"] = broken
    with pytest.raises(ValueError, match=r"amax of layers\.1\.mlp\.up_proj (is missing|must be positive)"):
        with_quantised_linears(source.stage, amax, "mlp")


def test_quantised_weights_of_an_exported_graph_are_counted(
    quantize_op: None, small_sources: dict[str, StageContext]
) -> None:
    source = small_sources["prefix"]
    core = PrefixCore(with_quantised_linears(source.stage, source.amax, "mlp"))
    with torch.no_grad():
        args = prefix_inputs(source.stage, *source.examples[0])[0]  # type: ignore[arg-type]
        graph = torch.export.export(core, args).module().graph
    assert count_quantised_weights(graph) == WeightBytes.of(core).fp8_linears == 6


def _weights(megabytes: int) -> WeightBytes:
    return WeightBytes(3, megabytes << 20, megabytes << 21, 1 << 20)


def test_engine_with_a_byte_a_weight_is_fp8() -> None:
    engine = replace(ENGINE, plan=bytes(64 << 20), fp8_weights=3)
    assert require_fp8("prefix", engine, _weights(60)) == "graph and engine size"


def test_engine_as_large_as_bf16_is_refused() -> None:
    engine = replace(ENGINE, plan=bytes(121 << 20), fp8_weights=3)
    with pytest.raises(
        RuntimeError, match=r"prefix's engine must have about 63963136 bytes with FP8 weights"
    ):
        require_fp8("prefix", engine, _weights(60))


def test_size_of_a_small_engine_proves_nothing_but_its_graph_does() -> None:
    engine = replace(ENGINE, plan=bytes(8 << 20), fp8_weights=3)
    assert require_fp8("prefix", engine, _weights(2)) == "graph"
    with pytest.raises(
        RuntimeError, match="must have 3 FP8 weights, got 0: constant folding took the others"
    ):
        require_fp8("prefix", replace(engine, fp8_weights=0), _weights(2))


def test_weights_are_counted_in_their_own_dtypes() -> None:
    module = nn.ModuleDict({"linear": nn.Linear(8, 4, bias=False).bfloat16(), "norm": nn.LayerNorm(8)})
    assert WeightBytes.of(module) == WeightBytes(0, 0, 0, 8 * 4 * 2 + 2 * 8 * 4)
    module["linear"] = QuantisedLinear(module["linear"], 1.0)  # type: ignore[arg-type]
    weights = WeightBytes.of(module)
    assert weights == WeightBytes(1, 32, 64, 64)
    assert (weights.expected, weights.saved) == (96, 32)


class Folder:
    def is_impure(self, node: Any) -> bool:
        return bool(node.target == "already impure")


def _fake_compiler(monkeypatch: pytest.MonkeyPatch, **modules: ModuleType) -> None:
    """Put Torch-TensorRT's lowering, as far as the guard touches it, into `sys.modules`."""
    lowering = ModuleType("torch_tensorrt.dynamo.lowering")
    folding = SimpleNamespace(_TorchTensorRTConstantFolder=Folder)
    lowering.passes = SimpleNamespace(constant_folding=folding)  # type: ignore[attr-defined]
    parents = {"torch_tensorrt": ModuleType("torch_tensorrt"), "dynamo": ModuleType("dynamo")}
    monkeypatch.setitem(sys.modules, "torch_tensorrt", parents["torch_tensorrt"])
    monkeypatch.setitem(sys.modules, "torch_tensorrt.dynamo", parents["dynamo"])
    monkeypatch.setitem(sys.modules, lowering.__name__, lowering)
    for module in (*parents.values(), lowering):
        module.__path__ = []
    for name, module in modules.items():
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        monkeypatch.setitem(sys.modules, f"{lowering.__name__}.{name}", module)


def test_guard_spares_the_operator_and_is_taken_back(
    quantize_op: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_compiler(monkeypatch)
    original = Folder.is_impure
    targets = [torch.ops.tensorrt.quantize_op.default, "already impure", torch.ops.aten.mul.Tensor]
    nodes = [SimpleNamespace(target=target) for target in targets]
    seen: list[bool] = []

    def compile_and_fail() -> None:
        with unfolded_weights():
            seen.extend(Folder().is_impure(node) for node in nodes)
            raise KeyError("while compiling")

    with pytest.raises(KeyError):
        compile_and_fail()
    assert seen == [True, True, False]
    assert Folder.is_impure is original


def test_guard_uses_the_registry_where_there_is_one(
    quantize_op: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules: dict[str, Any] = {}
    registry: Any = ModuleType("constant_fold_exclusions")
    registry.register_constant_fold_exclusion_rule = lambda name: lambda rule: rules.__setitem__(name, rule)
    registry.unregister_constant_fold_exclusion_rule = rules.pop
    _fake_compiler(monkeypatch, constant_fold_exclusions=registry)
    original = Folder.is_impure
    with unfolded_weights():
        (rule,) = rules.values()
        node = SimpleNamespace(target=torch.ops.tensorrt.quantize_op.default)
        assert (rule(node), rule(SimpleNamespace(target="other"))) == ([node], [])
        assert Folder.is_impure is original
    assert rules == {}
