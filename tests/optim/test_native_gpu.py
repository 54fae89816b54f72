"""Graphs, compiled and FP8 stages on a GPU, against eager on the same weights and inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from optim.base import Backend, StageContext, StageMismatch, apply_backends
from optim.compile import Compile
from optim.core.parity import ParityError, compare, stage_parity
from optim.cuda_graph import CudaGraph, capture
from optim.fp8 import Fp8
from optim.kernels.split_attention import BLOCK_KEYS, SplitAttention, use_split_attention
from optim.rewrite.merge_linears import replace_modules
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.denoise import SuffixAttention
from policies.pi05.dims import STAGES
from tests.optim import references
from tests.optim.small import eager_policy, random_checkpoint, random_request, sources

pytestmark = pytest.mark.gpu

REQUESTS = [random_request(0), random_request(1, "open the top drawer of the wooden cabinet")]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return random_checkpoint("cuda", torch.bfloat16)


@pytest.fixture(scope="module")
def of_gpu(checkpoint: Checkpoint) -> dict[str, StageContext]:
    return sources(checkpoint, REQUESTS)


def test_replay_follows_new_inputs() -> None:
    captured = capture(lambda x: x.square().sum(dim=0), (torch.ones(4, 3, device="cuda"),))
    for seed in range(3):
        x = torch.randn(4, 3, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
        torch.testing.assert_close(captured(x), x.square().sum(dim=0))


def test_recapture_reads_replaced_weights() -> None:
    weight = [torch.full((3,), 2.0, device="cuda")]
    captured = capture(lambda x: x * weight[0], (torch.ones(3, device="cuda"),))
    weight[0] = torch.full((3,), 5.0, device="cuda")
    captured.recapture()
    assert captured(torch.ones(3, device="cuda")).tolist() == [5.0] * 3


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("chosen", [CudaGraph(), Compile()], ids=["cuda_graph", "compile"])
def test_stage_serves_two_lengths_with_fresh_inputs_and_refuses_a_third(
    name: str, chosen: Backend, of_gpu: dict[str, StageContext], checkpoint: Checkpoint
) -> None:
    source = of_gpu[name]
    stage = chosen(source)
    fresh = sources(checkpoint, [random_request(7), random_request(8, REQUESTS[1].observation.instruction)])
    with torch.no_grad():
        for args in [*fresh[name].examples, *source.examples]:
            assert stage_parity(stage(*args), source.stage(*args)).rel_error < 0.05
        third = sources(checkpoint, [random_request(3, "push the plate")])[name].examples[0]
        if name == "vision":
            third = (torch.zeros(1, 3, 3, 224, 224, device="cuda"),)
        with pytest.raises(StageMismatch, match=f"{name} input"):
            stage(*third)
    assert (stage.calls, stage.misses) == (4, 0)


@pytest.mark.parametrize("form", ["lean", "full"])
def test_a_compiled_policy_meets_eager_end_to_end(form: str, checkpoint: Checkpoint) -> None:
    split = Compile(attention="split")
    backends: dict[str, Backend] = {"vision": Compile(), "prefix": Compile(), "denoise": split}
    eager = eager_policy(checkpoint, form)
    fast = eager.with_stages(apply_backends(sources(checkpoint, REQUESTS, form), backends))
    for request in [*REQUESTS, random_request(5)]:
        actions, expected = (
            torch.from_numpy(policy.infer([request])[0].actions_HJ) for policy in (fast, eager)
        )
        assert compare(actions, expected).rel_error < 0.1
    assert [facts["details"]["cuda_graph"] for facts in fast.engagement().values()] == [True] * 3
    assert [facts["calls"] for facts in fast.engagement().values()] == [3, 3, 3]


@pytest.mark.parametrize("form", ["lean", "full"])
def test_native_policy_meets_eager_end_to_end(form: str, checkpoint: Checkpoint) -> None:
    backends: dict[str, Backend] = {"vision": Fp8(), "prefix": Fp8(), "denoise": Compile(attention="split")}
    eager = eager_policy(checkpoint, form)
    fast = eager.with_stages(apply_backends(sources(checkpoint, REQUESTS, form), backends))
    for request in [*REQUESTS, random_request(5)]:
        actions, expected = (
            torch.from_numpy(policy.infer([request])[0].actions_HJ) for policy in (fast, eager)
        )
        assert compare(actions, expected).rel_error < 0.2
    assert fast.engagement()["prefix"]["details"]["precision"] == "fp8"
    assert [facts["calls"] for facts in fast.engagement().values()] == [3, 3, 3]


def test_a_broken_scale_is_refused(of_gpu: dict[str, StageContext]) -> None:
    source = of_gpu["prefix"]
    amax = {name: value / 64 for name, value in source.amax.items()}
    with pytest.raises(ParityError, match="the engine computes something else"):
        Fp8()(StageContext(source.name, source.stage, source.examples, amax))


def test_split_attention_takes_the_place_of_every_suffix_attention(of_gpu: dict[str, StageContext]) -> None:
    stage = replace_modules(of_gpu["denoise"].stage, use_split_attention)
    swapped = [module for module in stage.modules() if isinstance(module, SuffixAttention)]
    assert [type(module) for module in swapped] == [SplitAttention] * 3


SHAPES = [
    # batch, query heads, KV heads, horizon, prefix tokens, head dimension
    (1, 8, 1, 10, 532, 256),
    (1, 8, 1, 50, 968, 256),
    (2, 4, 1, 10, 2 * BLOCK_KEYS, 32),
    (2, 4, 2, BLOCK_KEYS + 1, 1, 64),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda f: f, lambda f: torch.compile(f, fullgraph=True)], ids=["eager", "compile"]
)
def test_split_attention_meets_its_reference(
    shape: tuple[int, ...], masked: bool, wrap: Callable[..., Any]
) -> None:
    batch, heads, groups, horizon, prefix, dim = shape
    generator = torch.Generator("cuda").manual_seed(sum(shape))

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(batch, *size, device="cuda", generator=generator).bfloat16()

    attend = wrap(SplitAttention())
    for _ in range(2):
        args = (
            draw(heads, horizon, dim),
            *(draw(groups, prefix, dim) for _ in range(2)),
            *(draw(groups, horizon, dim) for _ in range(2)),
        )
        bias = None
        if masked:
            bias = torch.zeros(batch, 1, 1, prefix + horizon, device="cuda", dtype=torch.bfloat16)
            bias[-1, ..., : prefix // 2] = -1e30
        poison = torch.full((1 << 22,), float("nan"), device="cuda")
        del poison  # what the kernels do not write would read as NaN
        assert compare(attend(*args, bias), references.split_attention(*args, bias)).rel_error < 0.01
