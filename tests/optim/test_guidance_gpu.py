"""Guided denoise engines on a GPU against the eager stage with the same old chunk."""

from dataclasses import replace

import pytest
import torch

from optim.base import Backend, StageMismatch
from optim.compile import Compile
from optim.core.parity import compare, stage_parity
from optim.cuda_graph import CudaGraph
from optim.fused_denoise import Fused, FusedDenoise
from policies.base import GuideOptions
from policies.pi05.dims import PI05_FULL, PI05_SMALL, Pi05Dims
from policies.reference.sizes import DIMS as REFERENCE
from tests.optim.small import random_checkpoint, random_request, reference_checkpoint, sources
from tests.optim.test_fused_denoise_gpu import draw, shallow
from tests.optim.test_guidance import OPTIONS, guided_request

pytestmark = pytest.mark.gpu

BOUND = 0.02  # bfloat16 inputs, float32 sums
CHOSEN = [CudaGraph(), Compile(), Compile(attention="split"), Fused()]
NAMES = ["cuda_graph", "compile", "split", "fused"]


@pytest.mark.parametrize("chosen", CHOSEN, ids=NAMES)
@pytest.mark.parametrize("form", ["lean", "full"])
@pytest.mark.parametrize("weights", ["random", "reference"])
def test_engines_follow_the_old_chunk_as_eager_does(chosen: Backend, form: str, weights: str) -> None:
    make = random_checkpoint if weights == "random" else reference_checkpoint
    checkpoint = make("cuda", torch.bfloat16).with_guidance(OPTIONS)
    stage = chosen(sources(checkpoint, [guided_request(0)], form)["denoise"])
    fresh = sources(checkpoint, [guided_request(5), guided_request(7), random_request(5)], form)["denoise"]
    results = []
    with torch.no_grad():
        for args in fresh.examples:
            results.append(stage(*args).clone())
            assert stage_parity(results[-1], fresh.stage(*args)).rel_error < 2 * BOUND
        assert compare(results[0], results[2]).rel_error > 0.05  # the same but for the old chunk
        with pytest.raises(StageMismatch, match="denoise input 4"):
            stage(*fresh.examples[0][:4])


@pytest.mark.parametrize("dims", [PI05_FULL, REFERENCE, PI05_SMALL], ids=["full", "reference", "small"])
@pytest.mark.parametrize("kernel", ["phases", "ring"])
@pytest.mark.parametrize(("batch", "masked"), [(1, False), (1, True), (3, True)])
def test_kernels_are_guided_as_the_stage_and_zero_weights_change_nothing(
    dims: Pi05Dims, kernel: str, batch: int, masked: bool
) -> None:
    if kernel == "ring" and (batch > 1 or dims is PI05_SMALL):
        pytest.skip("not for the ring")
    plain = shallow(dims, 3, 10)
    stage = plain.with_guidance(OPTIONS)
    args = draw(0, stage, batch, 10, masked=masked)
    g = torch.Generator("cuda").manual_seed(1)
    old_2BHA = torch.randn(2, batch, 10, 32, device="cuda", generator=g)
    old_2BHA[1] = torch.linspace(1, 0, 10, device="cuda")[None, :, None] * (
        torch.arange(32, device="cuda") < 7
    )
    fused = FusedDenoise(stage, kernel)
    with torch.no_grad():
        guided = fused(*args, old_2BHA)  # type: ignore[arg-type]
        assert compare(guided, stage(*args, old_2BHA)).rel_error < BOUND
        free = fused(*args, torch.zeros_like(old_2BHA))  # type: ignore[arg-type]
        unguided = FusedDenoise(plain, kernel)(*args)  # type: ignore[arg-type]
    assert compare(free, unguided).rel_error < 1e-3
    assert compare(guided, unguided).rel_error > 0.05


def test_the_exact_jacobian_runs_in_eager_bfloat16() -> None:
    checkpoint = reference_checkpoint("cuda", torch.bfloat16)
    exact = sources(checkpoint.with_guidance(GuideOptions(5.0, "exact")), [guided_request(0)])["denoise"]
    identity = checkpoint.with_guidance(GuideOptions(5.0)).stages["denoise"]
    single = reference_checkpoint("cuda").with_guidance(GuideOptions(5.0, "exact")).stages["denoise"]
    [args] = exact.examples
    in_float32 = tuple(arg.float() if arg is not None and arg.is_floating_point() else arg for arg in args)
    with torch.no_grad():
        result = exact.stage(*args)
        assert compare(result, single(*in_float32)).rel_error < 0.1
        assert compare(result, identity(*args)).rel_error > 0.01


def test_two_requests_of_which_one_is_guided_are_each_alone() -> None:
    checkpoint = reference_checkpoint("cuda", torch.bfloat16).with_guidance(OPTIONS)
    source = sources(checkpoint, [guided_request(5), random_request(5)])["denoise"]
    one, other = source.examples
    parts = zip(one, other, (0, 1, 1, 0, 1), strict=True)
    two = tuple(None if a is None or b is None else torch.cat((a, b), dim) for a, b, dim in parts)
    stage = Fused()(replace(source, examples=[*source.examples, two]))
    with torch.no_grad():
        together = stage(*two).clone()
        for i, args in enumerate(source.examples):
            assert compare(together[i], stage(*args)[0]).rel_error < 2 * BOUND
