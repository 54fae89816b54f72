"""clock=rtc: what is refused before anything is loaded, and what the loaded policy is guided by."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from eval.config.compose import configure
from eval.config.schema import ConfigError
from eval.records.recording import RecordingPolicy
from eval.specs.choose import checked_spec
from eval.specs.pi05_build import choose_backends, eager_policy, load, optimise
from optim.base import Backend, CountedStage, StageContext
from optim.core.engines import serve
from optim.rewrite.prepared import prepare
from policies.base import GuideOptions, Request
from tests.optim.small import random_request

RTC = ["clock=rtc", "clock.latency_ms=100", "checkpoint=random_small", "policy.device=cpu"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["clock.latency_ms=measured"], "must know a delay before the inference, got .*=measured"),
        (["clock.beta=-1"], "clock.beta must be 0 to 1000, got -1"),
        (["clock.beta=nan"], "clock.beta must be a finite number, got nan"),
        (["clock.jacobian=diagonal"], "clock.jacobian must be one of identity, exact, got 'diagonal'"),
    ],
)
def test_options_out_of_range_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure([*RTC, *overrides])


@pytest.mark.parametrize(
    "policy",
    [
        ["policy=oracle"],
        ["policy=remote", "policy.url=ws://localhost:8000", "policy.label=some"],
        ["policy=custom", "policy._target_=examples.my_policy.tiny.TinyPolicy"],
    ],
)
def test_policies_whose_chunks_cannot_be_guided_are_refused(policy: list[str]) -> None:
    overrides = [*policy, "clock=rtc", "clock.latency_ms=100"]
    with pytest.raises(ConfigError, match="clock=rtc needs a policy whose denoise stage takes guidance"):
        checked_spec(configure(overrides), overrides)


@dataclass(frozen=True)
class Unguided(Backend):
    """Somebody's backend, which says nothing of guidance."""

    def __call__(self, source: StageContext) -> CountedStage:
        raise NotImplementedError


def test_a_jacobian_that_a_backend_does_not_serve_is_refused() -> None:
    config = configure([*RTC, "optim/denoise=compile", "clock.jacobian=exact"])
    with pytest.raises(
        ConfigError,
        match=r"clock=rtc with clock.jacobian=exact is not served by optim.denoise=Compile\(.*, which takes "
        "identity; set clock.jacobian=identity, or choose optim/denoise=eager",
    ):
        choose_backends(config)


def test_a_backend_that_says_nothing_of_guidance_is_refused() -> None:
    config = configure(RTC)
    config.optim.denoise = {"_target_": f"{__name__}.Unguided"}
    with pytest.raises(
        ConfigError,
        match=r"by optim.denoise=Unguided\(\), which takes no guidance; choose optim/denoise=eager",
    ):
        choose_backends(config)


@dataclass(frozen=True)
class Prepared(Backend):
    """Each stage prepared, and kept with its examples."""

    jacobians = ("identity",)

    def __call__(self, source: StageContext) -> CountedStage:
        prepared = prepare(source.stage, lambda function: lambda *args: function(*args))
        seen.append(source)
        return serve(source, "prepared", lambda args: prepared, tolerance=1e-4)


seen: list[StageContext] = []


def test_the_loaded_policy_is_guided_and_engines_are_compared_with_an_old_chunk() -> None:
    config = configure([*RTC, "clock.beta=2.5"])
    config.optim.denoise = {"_target_": f"{__name__}.Prepared"}
    backends, checkpoint = choose_backends(config), load(config)
    eager = eager_policy(config, checkpoint)
    assert eager.guidance == GuideOptions(2.5, "identity")

    def capture(policy: Any) -> list[Request]:
        return [random_request(0)]

    policy = optimise(config, eager, checkpoint, backends, capture)
    [source] = seen
    [args] = source.examples
    old_2BHA = args[4]
    assert old_2BHA is not None
    assert np.count_nonzero(old_2BHA[1].numpy()) == 9 * 7  # of 10 weights the last is zero; real dims alone
    [chunk] = policy.infer([random_request(0)])
    assert chunk.normalised_HA is not None
    assert policy.engagement()["denoise"]["details"]["parity"]["rel_error"] < 1e-5
    with pytest.raises(ValueError, match="record_observations must be 0 with clock=rtc"):
        RecordingPolicy(policy, 4)
