"""Guided denoise stages meet the eager one with the same old chunk, on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from optim import fused_denoise
from optim.base import StageContext
from optim.core.parity import stage_parity
from optim.fused_denoise import FusedDenoise
from optim.rewrite.prepared import PreparedDenoise
from policies.base import Guidance, GuideOptions, Request
from policies.pi05.denoise import Denoise
from policies.seeding import action_noise
from tests.optim import references
from tests.optim.small import random_checkpoint, random_request, sources

OPTIONS = GuideOptions(5.0)


def guided_request(seed: int) -> Request:
    """A request whose old chunk is noise, followed less and less."""
    asked = random_request(seed)
    old_HA = action_noise(asked.episode, 99, 10, 32)
    return replace(asked, guidance=Guidance(old_HA, np.linspace(1.0, 0.0, 10, dtype=np.float32)))


@pytest.fixture(scope="module")
def source() -> StageContext:
    checkpoint = random_checkpoint().with_guidance(OPTIONS)
    return sources(checkpoint, [guided_request(0), random_request(0), guided_request(1)])["denoise"]


def test_examples_have_an_old_chunk(source: StageContext) -> None:
    assert [len(args) for args in source.examples] == [5, 5, 5]
    stage = source.stage
    assert isinstance(stage, Denoise)
    with torch.no_grad():
        one, other = (stage(*args) for args in source.examples[:2])  # the same but for the guidance
    assert stage_parity(one, other).rel_error > 0.05


def test_prepared_steps_are_the_stage(source: StageContext) -> None:
    assert isinstance(source.stage, Denoise)
    prepared = PreparedDenoise(source.stage)
    with torch.no_grad():
        for args in source.examples:
            assert stage_parity(prepared(*args), source.stage(*args)).rel_error < 1e-6


def test_the_kernels_reference_is_the_stage(source: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused_denoise.KERNELS, "phases", references.denoise)
    assert isinstance(source.stage, Denoise)
    fused = FusedDenoise(source.stage, "phases")
    with torch.no_grad():
        for args in source.examples:
            assert stage_parity(fused(*args), source.stage(*args)).rel_error < 1e-6


def test_a_compiled_step_serves_all_steps_guided_or_not(source: StageContext) -> None:
    counter = CompileCounter()  # instead of Inductor, which takes 14 s
    assert isinstance(source.stage, Denoise)
    prepared = PreparedDenoise(
        source.stage, lambda step: torch.compile(step, backend=counter, fullgraph=True, dynamic=False)
    )
    with torch.no_grad():
        for args in source.examples[:2]:
            assert stage_parity(prepared(*args), source.stage(*args)).rel_error < 1e-6
    assert counter.frame_count == 1


@pytest.mark.parametrize("make", [PreparedDenoise, lambda stage: FusedDenoise(stage, "phases")])
def test_the_exact_jacobian_is_refused_where_nothing_is_differentiated(make: object) -> None:
    stage = random_checkpoint().with_guidance(GuideOptions(5.0, "exact")).stages["denoise"]
    with pytest.raises(ValueError, match=r"clock.jacobian=exact needs optim/denoise=eager"):
        make(stage)  # type: ignore[operator]
