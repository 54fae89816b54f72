"""The policy end to end, on random weights and random images."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from optim.base import CountedStage
from optim.eager import eager_stages
from policies.base import Policy, Request
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.dims import STAGES
from policies.pi05.policy import Pi05Policy
from policies.pi05.timing import StageTimer
from policies.seeding import action_noise

MakeRequest = Callable[..., Request]


@pytest.fixture
def policy(small: Checkpoint) -> Pi05Policy:
    return Pi05Policy.from_checkpoint(small, eager_stages(small.stages), name="baseline")


def test_infer_returns_a_chunk_per_request_in_robot_units(
    policy: Pi05Policy, request_of: MakeRequest
) -> None:
    as_protocol: Policy = policy
    chunks = as_protocol.infer([request_of(0), request_of(1)])
    assert [chunk.actions_HJ.shape for chunk in chunks] == [(10, 7)] * 2
    assert all(chunk.actions_HJ.dtype == np.float64 for chunk in chunks)
    assert np.isfinite(chunks[0].actions_HJ).all()
    assert list(chunks[0].stage_ms) == list(STAGES)
    assert all(ms > 0 for ms in chunks[0].stage_ms.values())
    assert chunks[0].backends == dict.fromkeys(STAGES, "eager")
    assert policy.cameras == ("agentview_image", "robot0_eye_in_hand_image")


def test_actions_do_not_depend_on_the_rest_of_the_batch(policy: Pi05Policy, request_of: MakeRequest) -> None:
    requests = [request_of(0), request_of(1, "open the top drawer and put the bowl inside"), request_of(2)]
    batched = policy.infer(requests)
    for request, chunk in zip(requests, batched, strict=True):
        np.testing.assert_allclose(
            policy.infer([request])[0].actions_HJ, chunk.actions_HJ, rtol=1e-4, atol=1e-5
        )


def test_same_request_gives_the_same_actions_and_the_next_call_others(
    policy: Pi05Policy, request_of: MakeRequest
) -> None:
    first = policy.infer([request_of(0)])[0].actions_HJ
    torch.manual_seed(99)  # the global generator plays no part
    np.testing.assert_array_equal(policy.infer([request_of(0)])[0].actions_HJ, first)
    assert not np.allclose(policy.infer([request_of(0, call=1)])[0].actions_HJ, first)


def test_noise_comes_from_the_episode_key_alone(policy: Pi05Policy, request_of: MakeRequest) -> None:
    requests = [request_of(seed) for seed in range(3)]
    noise = policy.example_inputs([requests])["denoise"][0][0]
    assert noise is not None
    for row, request in zip(noise.numpy(), requests, strict=True):
        np.testing.assert_array_equal(row, action_noise(request.episode, request.call, 10, 32))


def test_noise_is_drawn_when_vision_and_prefix_have_been_launched(
    policy: Pi05Policy, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_after: list[dict[str, int]] = []

    def noise(*args: Any) -> NDArray[np.float32]:
        drawn_after.append({name: policy.stages[name].calls - before[name] for name in STAGES})
        return action_noise(*args)

    before = {name: policy.stages[name].calls for name in STAGES}
    monkeypatch.setattr("policies.pi05.policy.action_noise", noise)
    policy.infer([request_of(0)])
    assert drawn_after == [{"vision": 1, "prefix": 1, "denoise": 0}]


def test_full_form_gives_the_actions_of_the_lean_form(policy: Pi05Policy, request_of: MakeRequest) -> None:
    full = replace(policy, form="full")
    lean_actions = policy.infer([request_of(0)])[0].actions_HJ
    np.testing.assert_allclose(full.infer([request_of(0)])[0].actions_HJ, lean_actions, rtol=1e-4, atol=1e-5)
    shapes = {
        p.form: [tuple(t.shape) for t in p.example_inputs([[request_of(0)]])["prefix"][0] if t is not None]
        for p in (policy, full)
    }
    assert shapes["full"][0][1] + shapes["full"][2][1] == 968
    assert len(shapes["lean"]) == 2
    assert shapes["lean"][0] == (1, 512, 128)


def test_example_inputs_replay_to_the_policys_actions(policy: Pi05Policy, request_of: MakeRequest) -> None:
    requests = [request_of(0)]
    examples = policy.example_inputs([requests, [request_of(1)]])
    assert {name: len(calls) for name, calls in examples.items()} == dict.fromkeys(STAGES, 2)
    actions = policy.stages["denoise"](*examples["denoise"][0])
    np.testing.assert_array_equal(
        policy.postprocess(actions.detach().numpy())[0], policy.infer(requests)[0].actions_HJ
    )


def test_engagement_counts_each_stage_once_per_inference(
    policy: Pi05Policy, small: Checkpoint, request_of: MakeRequest, counted: Any
) -> None:
    other = policy.with_stages({name: counted(small.stages[name]) for name in STAGES})
    policy.infer([request_of(0)])
    for _ in range(3):
        other.infer([request_of(0), request_of(1)])
    assert {name: facts["calls"] for name, facts in policy.engagement().items()} == dict.fromkeys(STAGES, 1)
    assert other.engagement()["prefix"] == {
        "backend": "fake",
        "calls": 3,
        "misses": 0,
        "refused": 0,
        "details": {},
    }


def test_provenance_is_json_and_says_what_ran(policy: Pi05Policy) -> None:
    facts = json.loads(json.dumps(policy.provenance()))
    assert facts["weights_label"] == "RANDOM WEIGHTS (small)"
    assert (facts["device"], facts["dtype"], facts["form"]) == ("cpu", "float32", "lean")
    assert (facts["denoise_steps"], facts["replan_steps"], facts["horizon"]) == (3, 5, 10)
    assert len(facts["weights_sha256"]) == 64


def test_non_finite_actions_raise(policy: Pi05Policy, small: Checkpoint, request_of: MakeRequest) -> None:
    def broken(*args: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 10, 32), float("nan"))

    stages = {**policy.stages, "denoise": CountedStage("eager", broken)}
    with pytest.raises(FloatingPointError, match="got 320 of 320"):
        policy.with_stages(stages).infer([request_of(0)])


def test_no_request_bad_form_and_missing_stage_are_refused(policy: Pi05Policy) -> None:
    with pytest.raises(ValueError, match="at least one request"):
        policy.infer([])
    with pytest.raises(ValueError, match=r"policy\.form must be one of"):
        replace(policy, form="thin")
    with pytest.raises(ValueError, match="stages must be exactly"):
        policy.with_stages({"vision": policy.stages["vision"]})


def test_timer_measures_stages_in_order() -> None:
    timer = StageTimer(torch.device("cpu"))
    with timer("first"):
        sum(range(100_000))
    with timer("second"):
        pass
    times = timer.read_ms()
    assert list(times) == ["first", "second"]
    assert times["first"] > times["second"] >= 0
