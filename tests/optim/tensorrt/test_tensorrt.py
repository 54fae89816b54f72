"""TensorRT without TensorRT: options, the modules that become engines, FP8 pairs, proofs, engine files."""

import dataclasses
import hashlib
import importlib.util
import json
import operator
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from optim.base import CannotRun, StageContext, check_backends
from optim.core.parity import ParityError, compare, require_parity, stage_parity
from optim.tensorrt.backend import TensorRT, engine_ingredients
from optim.tensorrt.cache import EngineCache, SerializedEngine, cache_key
from optim.tensorrt.engine import wiring
from optim.tensorrt.fp8 import (
    QuantisedLinear,
    WeightBytes,
    count_quantised_weights,
    quantised_names,
    require_fp8,
    unfolded_weights,
    with_quantised_linears,
)
from optim.tensorrt.modules import PrefixCore, VisionCore, cast_linears, prefix_inputs
from policies.pi05.checkpoint import Checkpoint
from tests.optim.small import random_request, sources

CUDA, BF16 = torch.device("cuda"), torch.bfloat16
ENGINE = SerializedEngine(b"plan", ("x", "bias"), (0, 2), ("output0", "output1"), (1, 0), 6)


@pytest.fixture
def quantize_op() -> Iterator[None]:
    """modelopt's operator, rounding to e4m3, where modelopt is absent."""
    if importlib.util.find_spec("modelopt") or hasattr(torch.ops.tensorrt, "quantize_op"):
        yield
        return

    def rounded(x: Tensor, amax: Tensor, *how: Any) -> Tensor:
        assert how == (8, 4, False, False)
        assert amax.shape == (1,)
        scaled = (x.float() * (448.0 / amax)).clamp(-448.0, 448.0)
        return (scaled.to(torch.float8_e4m3fn).float() * (amax / 448.0)).to(x.dtype)

    with torch.library._scoped_library("tensorrt", "FRAGMENT") as library:
        library.define(
            "quantize_op(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned, "
            "bool narrow_range) -> Tensor"
        )
        library.impl("quantize_op", rounded, "CompositeExplicitAutograd")
        yield


def _prefix(source: StageContext, stage: nn.Module) -> Any:
    """Return what serves the prefix when its engine is this stage in PyTorch."""
    core = PrefixCore(stage)

    def serve(*args: Tensor | None) -> Any:
        core_args, mask = prefix_inputs(source.stage, *args)  # type: ignore[arg-type]
        return *core(*core_args), mask

    return serve


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, r"precision must be one of fp16, bf16, fp8, got 'int8'"),
        ({"precision": "fp8", "fp8_linears": "norms"}, r"fp8_linears must be one of all, mlp, got 'norms'"),
        (
            {"precision": "bf16", "fp8_linears": "all"},
            "fp8_linears=all needs precision=fp8, got precision=bf16; leave fp8_linears out",
        ),
        ({"precision": "bf16", "cache_dir": ""}, "cache_dir must be a folder or null"),
    ],
)
def test_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorRT(**options)


def test_fp8_needs_calibration_for_its_scales_and_fp16_for_its_range() -> None:
    assert [TensorRT(precision).needs_amax for precision in ("fp16", "bf16", "fp8")] == [True, False, True]


def _install(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr("optim.tensorrt.backend._installed", lambda package: package in packages)


ALL = ("torch_tensorrt", "tensorrt_rtx", "modelopt")


@pytest.mark.parametrize(
    ("precision", "stage", "packages", "device", "dtype", "message"),
    [
        ("bf16", "denoise", ALL, CUDA, BF16, "TensorRT supports vision and prefix, got denoise"),
        ("fp16", "prefix", ALL, CUDA, BF16, "prefix overflows in fp16; choose precision=bf16"),
        ("bf16", "vision", (), CUDA, BF16, r"needs torch-tensorrt, tensorrt; pip install -c constraints"),
        ("bf16", "vision", ALL[:1], CUDA, BF16, r"needs tensorrt; pip install -c constraints"),
        ("fp8", "prefix", ALL[:2], CUDA, BF16, r"needs nvidia-modelopt; pip install -c constraints"),
        ("bf16", "vision", ALL, torch.device("cpu"), BF16, "needs an NVIDIA GPU, got policy.device=cpu"),
        ("bf16", "vision", ALL, CUDA, torch.float32, "needs policy.precision=bfloat16, got float32"),
        ("fp8", "prefix", ALL, CUDA, torch.float32, "needs policy.precision=bfloat16, got float32"),
    ],
)
def test_machine_that_cannot_run_it_is_told_in_one_line(
    precision: str,
    stage: str,
    packages: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _install(monkeypatch, *packages)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(CannotRun, match=message) as refused:
        check_backends({stage: TensorRT(precision)}, device, dtype)
    assert "\n" not in str(refused.value)


def test_fp8_on_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, *ALL)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(CannotRun, match=r"TensorRT in FP8 needs compute capability 8\.9, A100 has 8\.0"):
        TensorRT("fp8").check("prefix", CUDA, BF16)
    TensorRT("bf16").check("prefix", CUDA, BF16)
    TensorRT("fp16").check("vision", CUDA, torch.float32)


def test_engine_without_a_name_for_its_weights_is_not_cached(small_sources: dict[str, StageContext]) -> None:
    with pytest.raises(ValueError, match="set cache_dir=null"):
        TensorRT("bf16")(replace(small_sources["vision"], weights_sha256=""))


def test_activations_beyond_fp16_are_refused(small_sources: dict[str, StageContext]) -> None:
    loud = replace(small_sources["vision"], amax={"layers.1.mlp.fc2": 7e4})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.fc2 reads numbers up to 70000\.0, above fp16's"):
        TensorRT("fp16")(loud)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vision_in_fp16_keeps_its_norms_and_its_boundary(
    dtype: torch.dtype, small: Checkpoint, small_sources: dict[str, StageContext]
) -> None:
    source = small_sources["vision"]
    before = {name: value.dtype for name, value in source.stage.state_dict().items()}
    core = VisionCore(cast_linears(source.stage, torch.float16), dtype)
    kinds = {
        type(module)
        for module in core.modules()
        if any(p.dtype != torch.float16 for p in module._parameters.values() if p is not None)
    }
    assert {kind.__name__ for kind in kinds} == {"FloatLayerNorm", "Conv2d", "Embedding"}
    with torch.no_grad():
        for args in source.examples:
            tokens = core(*args)
            assert tokens.dtype == dtype
            assert 0 < compare(tokens, source.stage(*args)).rel_error < 0.02
    assert {name: value.dtype for name, value in source.stage.state_dict().items()} == before


@pytest.mark.parametrize("form", ["lean", "full"])
def test_prefix_in_one_engine_equals_the_stage(form: str, small: Checkpoint) -> None:
    source = sources(small, [random_request(0), random_request(1, "open the drawer")], form)["prefix"]
    parity = require_parity(_prefix(source, source.stage), source.stage, source.examples, 1e-5)
    assert parity.cosine > 0.999999
    core_args, mask = prefix_inputs(source.stage, *source.examples[0])  # type: ignore[arg-type]
    assert (len(core_args), mask is None) == ((3, True) if form == "lean" else (4, False))
    assert all(arg.is_floating_point() for arg in core_args)


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
    parity = require_parity(_prefix(source, stage), source.stage, source.examples, 0.2)
    assert parity.rel_error > 1e-3
    assert list(source.stage.state_dict()) == keys
    broken = {name: value / 64 for name, value in source.amax.items()}
    with pytest.raises(ParityError, match="the engine computes something else"):
        require_parity(
            _prefix(source, with_quantised_linears(source.stage, broken, linears)),
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


def _compiled(swapped: bool = False, leftover: bool = False) -> fx.Graph:
    """Return a graph as Torch-TensorRT leaves it: an engine of x and z with two results, y unused."""
    graph = fx.Graph()
    x, _, z = (graph.placeholder(name) for name in "xyz")
    engine = graph.call_module("_run_on_acc_0", (z, x))
    results = [graph.call_function(operator.getitem, (engine, i)) for i in range(2)]
    if leftover:
        results[0] = graph.call_function(torch.neg, (results[0],))
    graph.output(tuple(reversed(results)) if swapped else tuple(results))
    return graph


@pytest.mark.parametrize(("swapped", "outputs"), [(False, (0, 1)), (True, (1, 0))])
def test_engine_is_wired_by_the_graph_and_not_by_order(swapped: bool, outputs: tuple[int, int]) -> None:
    assert wiring(_compiled(swapped)) == ((2, 0), outputs, "_run_on_acc_0")


def test_operation_left_in_pytorch_is_an_error() -> None:
    with pytest.raises(
        RuntimeError, match=r"must take the module whole, got 1 subgraphs and, in PyTorch, \['neg'\]"
    ):
        wiring(_compiled(leftover=True))


def test_engine_that_is_one_result_is_wired() -> None:
    graph = fx.Graph()
    graph.output((graph.call_module("_run_on_acc_0", (graph.placeholder("x"),)),))
    assert wiring(graph) == ((0,), (0,), "_run_on_acc_0")


ENVIRONMENT = {
    "torch": "2.11",
    "torch_tensorrt": "2.11",
    "tensorrt": "TensorRT 10.15",
    "gpu": "H200",
    "capability": [9, 0],
}
INPUTS = (torch.zeros(1, 20, 128), torch.zeros(1, 1, 20, 32))


def _ingredients(source: StageContext, **changes: Any) -> dict[str, Any]:
    options = {"options": TensorRT("fp8"), "inputs": INPUTS, "environment": ENVIRONMENT}
    return engine_ingredients(source=source, **{**options, **changes})


def test_key_changes_with_each_ingredient(small_sources: dict[str, StageContext]) -> None:
    source = small_sources["prefix"]
    scaled = {name: value * 1.0001 for name, value in source.amax.items()}
    half = replace(source, stage=cast_linears(source.stage, torch.bfloat16))
    changed = [
        _ingredients(source),
        _ingredients(replace(source, weights_sha256="other")),
        _ingredients(replace(source, amax=scaled)),
        _ingredients(half),
        _ingredients(source, inputs=(INPUTS[0][:, :19], INPUTS[1])),
        _ingredients(source, inputs=(INPUTS[0].bfloat16(), INPUTS[1])),
        _ingredients(source, options=TensorRT("bf16")),
        _ingredients(source, options=TensorRT("fp8", fp8_linears="all")),
        *(_ingredients(source, environment={**ENVIRONMENT, name: "other"}) for name in ENVIRONMENT),
        _ingredients(small_sources["vision"]),
    ]
    keys = [cache_key(ingredients) for ingredients in changed]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache_key(_ingredients(source))
    same = [
        TensorRT("fp8", cache_dir=None),
        TensorRT("fp8", cuda_graph=False),
    ]
    assert {cache_key(_ingredients(source, options=options)) for options in same} == {keys[0]}


def test_key_changes_with_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key({"a": 1})
    monkeypatch.setattr("optim.tensorrt.cache.FORMAT", 1000)
    assert cache_key({"a": 1}) != before


def test_stored_engine_is_found_again_and_no_other(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.load({"a": 1}) is None
    cache.store({"a": 1}, ENGINE)
    assert cache.load({"a": 1}) == ENGINE
    assert cache.load({"a": 2}) is None
    (sidecar,) = cache.folder.glob("*.json")
    facts = json.loads(sidecar.read_text())
    assert facts["ingredients"]["a"] == 1
    assert (facts["engine_bytes"], facts["sha256"]) == (4, hashlib.sha256(b"plan").hexdigest())
    assert set(facts) >= {field.name for field in dataclasses.fields(ENGINE)} - {"plan"}


def test_engine_of_another_process_is_kept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store({"a": 1}, ENGINE)
    cache.store({"a": 1}, replace(ENGINE, plan=b"built a moment later"))
    assert cache.load({"a": 1}) == ENGINE
    assert len(list(tmp_path.iterdir())) == 2


def test_engine_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EngineCache(tmp_path)

    def interrupted(self: Path, target: Path) -> None:
        assert self.parent == target.parent  # a rename within one file system
        assert self.stat().st_size > 0
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.store({"a": 1}, ENGINE)
    assert list(tmp_path.iterdir()) == []
    assert cache.load({"a": 1}) is None


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".engine", b"plaN", r"engine cache file .*\.engine is damaged: its SHA-256 is not"),
        (".engine", None, r"engine cache file .*\.engine is missing"),
        (".json", b'{"engine": "x', r"engine cache file .*\.json is damaged \(JSONDecodeError"),
        (".json", b"{}", r"engine cache file .*\.json is damaged \(KeyError"),
        (".json", b"[]", r"engine cache file .*\.json is damaged \(TypeError"),
    ],
)
def test_damaged_engine_file_is_an_error_that_names_it(
    suffix: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path)
    cache.store({"a": 1}, ENGINE)
    (path,) = tmp_path.glob(f"*{suffix}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match=message):
        cache.load({"a": 1})


def test_engine_file_of_other_ingredients_is_an_error(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store({"a": 1}, ENGINE)
    (sidecar,) = tmp_path.glob("*.json")
    sidecar.write_text(sidecar.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(RuntimeError, match="describes another engine; delete it"):
        cache.load({"a": 1})
