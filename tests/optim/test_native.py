"""Fused, compiled and FP8 stages meet the stages they replace, on the CPU."""

from typing import Any

import pytest
import torch
from torch import nn

from optim.base import CannotRun, StageContext, StageMismatch
from optim.compile import Compile
from optim.core.fp8_format import FP8, quantise
from optim.core.parity import ParityError, compare, require_parity, stage_parity
from optim.fp8 import Fp8, Fp8Linear, with_fp8_linears
from optim.rewrite.merge_linears import fuse
from policies.pi05.denoise import SuffixAttention
from tests.optim import references


@pytest.mark.parametrize("name", ["vision", "prefix", "denoise"])
def test_fused_stage_equals_the_stage_and_shares_what_it_does_not_fuse(
    name: str, small_sources: dict[str, StageContext]
) -> None:
    source = small_sources[name]
    before = {key: value.clone() for key, value in source.stage.state_dict().items()}
    fused = fuse(source.stage)
    for args in source.examples:
        with torch.no_grad():
            assert stage_parity(fused(*args), source.stage(*args)).rel_error < 1e-6
    names = [path for path, module in fused.named_modules() if isinstance(module, nn.Linear)]
    assert not [path for path in names if path.endswith((".q_proj", ".k_proj", ".up_proj"))]
    assert len(names) < sum(isinstance(module, nn.Linear) for module in source.stage.modules())
    after = source.stage.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    shared = {p.data_ptr() for p in source.stage.parameters()} & {p.data_ptr() for p in fused.parameters()}
    assert shared


def test_quantise_saturates() -> None:
    x = torch.tensor([1000.0, -1000.0, 0.5])
    assert quantise(x, torch.tensor(1.0)).float().tolist() == [448.0, -448.0, 0.5]


@pytest.mark.parametrize("bias", [True, False])
def test_fp8_linear_meets_the_linear_within_its_resolution(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 32, bias=bias).to(torch.bfloat16)
    x = torch.randn(3, 5, 64, generator=generator).to(torch.bfloat16)
    fp8 = Fp8Linear(linear, x.abs().max().item())
    assert fp8.weight.dtype == FP8
    with torch.no_grad():
        parity = compare(fp8(x), linear(x))
    assert 0.005 < parity.rel_error < 0.06  # 3 bits of mantissa: 2**-4 at most for each factor
    with pytest.raises(ValueError, match=r"multiples of 16, got 40 in and 32 out; keep this stage"):
        Fp8Linear(nn.Linear(40, 32), 1.0)


@pytest.mark.parametrize("name", ["vision", "prefix"])
@pytest.mark.parametrize(("linears", "bound"), [("all", 0.15), ("mlp", 0.10)])
def test_fp8_stage_meets_eager_and_a_broken_scale_does_not(
    name: str, linears: str, bound: float, small_sources: dict[str, StageContext]
) -> None:
    source = small_sources[name]
    fp8 = with_fp8_linears(source.stage, source.amax, linears)
    parity = require_parity(fp8, source.stage, source.examples, bound)
    assert parity.rel_error > 1e-3, "nothing was quantised"
    paths = [path for path, module in fp8.named_modules() if isinstance(module, Fp8Linear)]
    assert all(".mlp." in path for path in paths) == (linears == "mlp")
    broken = {key: value / 64 for key, value in source.amax.items()}
    with pytest.raises(ParityError, match=f"relative error must be <= {bound}"):
        require_parity(with_fp8_linears(source.stage, broken, linears), source.stage, source.examples, bound)


def test_a_linear_without_calibration_is_an_error(small_sources: dict[str, StageContext]) -> None:
    source = small_sources["prefix"]
    amax = {key: value for key, value in source.amax.items() if key != "layers.1.mlp.down_proj"}
    with pytest.raises(ValueError, match=r"no calibrated maximum for the input of layers.1.mlp.down_proj"):
        with_fp8_linears(source.stage, amax, "all")


@pytest.mark.parametrize(
    ("name", "device", "error", "words"),
    [
        ("denoise", "cuda", RuntimeError, "FP8 serves vision and prefix"),
        ("prefix", "cpu", CannotRun, "it needs an NVIDIA GPU"),
    ],
)
def test_fp8_says_where_it_cannot_run(name: str, device: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Fp8().check(name, torch.device(device), torch.bfloat16)


def test_fp8_asks_for_bfloat16_and_for_a_gpu_that_has_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(CannotRun, match=r"FP8 needs compute capability 8.9, NVIDIA A100 has 8.0"):
        Fp8().check("prefix", torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(RuntimeError, match=r"needs policy.precision=bfloat16, got float32"):
        Fp8().check("prefix", torch.device("cuda"), torch.float32)
    Fp8().check("prefix", torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fp8(linears="half"), "linears must be one of all, mlp, got 'half'"),
        (lambda: Fp8(warmup=0), "warmup must be >= 1, got 0"),
        (lambda: Compile(attention="flash"), "attention must be one of sdpa, split, got 'flash'"),
    ],
)
def test_wrong_options_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_split_attention_serves_denoise_on_a_gpu() -> None:
    with pytest.raises(
        RuntimeError, match=r"attention=split serves denoise; set optim.prefix.attention=sdpa"
    ):
        Compile(attention="split").check("prefix", torch.device("cuda"), torch.bfloat16)
    with pytest.raises(CannotRun, match="it needs an NVIDIA GPU"):
        Compile(attention="split").check("denoise", torch.device("cpu"), torch.bfloat16)


def test_compile_asks_a_gpu_for_bfloat16_and_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    words = r"bfloat16 in matrix units needs compute capability 8.0, Tesla T4 has 7.5"
    with pytest.raises(CannotRun, match=words):
        Compile().check("prefix", cuda, torch.bfloat16)
    Compile().check("prefix", cuda, torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for name, chosen in (("vision", Compile()), ("denoise", Compile(attention="split"))):
        chosen.check(name, cuda, torch.bfloat16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="it needs Triton"):
        Compile().check("prefix", cuda, torch.bfloat16)
    Compile().check("prefix", torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_the_reference_of_split_attention_is_the_attention_of_the_stage(groups: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator)

    bias = None
    if masked:
        bias = torch.zeros(2, 1, 1, 27)
        bias[1, ..., 9:17] = -1e30
    args = (
        draw(4, 10, 16),
        draw(groups, 17, 16),
        draw(groups, 17, 16),
        draw(groups, 10, 16),
        draw(groups, 10, 16),
    )
    assert compare(SuffixAttention()(*args, bias), references.split_attention(*args, bias)).rel_error < 1e-6


def test_compiled_stage_serves_two_lengths_and_refuses_a_third(
    small_sources: dict[str, StageContext],
) -> None:
    source = small_sources["denoise"]
    stage = Compile()(source)
    assert stage.details["engines"] == 2
    assert stage.details["cuda_graph"] is False
    with torch.no_grad():
        for args in source.examples:
            assert stage_parity(stage(*args), source.stage(*args)).rel_error < 1e-4
    noise, keys, values, _ = source.examples[0]
    assert keys is not None
    assert values is not None
    with pytest.raises(StageMismatch, match=r"denoise input 1 is \(3, 1, 1, 51\d, 32\)"):
        stage(noise, keys[:, :, :, 1:], values[:, :, :, 1:], None)
