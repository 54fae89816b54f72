"""A policy process: which requests it serves together, and what an error costs."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.episodes.rollout import PolicyLost, ServedChunk
from eval.runners.ray.policy_server import PolicyServer
from eval.specs.base import BuiltPolicy
from eval.specs.batching import Batching
from policies.base import ActionChunk, Request
from tests.eval import fake_run
from tests.eval.fake_run import run
from tests.eval.fakes import ArithmeticPolicy, no_observation
from tests.eval.runners.ray.faulty import (
    request,
)


class Counting(ArithmeticPolicy):
    """Keeps the sizes of its batches; raises in one task."""

    def __init__(self, broken_task: int | None = None) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.broken_task = broken_task

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        self.batches.append(len(requests))
        if any(request.episode.task_id == self.broken_task for request in requests):
            raise FloatingPointError("actions are not finite")
        return super().infer(requests)


def serve(
    policy: ArithmeticPolicy, requests: Sequence[Request], *, max_batch: int, batching: Batching | None = None
) -> list[ServedChunk | BaseException]:
    """What a host answers to requests that arrive together."""

    async def ask() -> list[ServedChunk | BaseException]:
        host = PolicyServer(
            max_batch=max_batch,
            max_wait_ms=50,
            warmup_inferences=1,
            threads=torch.get_num_threads(),
        )
        answers = [host.infer(request, True) for request in requests]  # which wait until it is built
        await host.build(lambda _: BuiltPolicy(policy, batching or Batching()), no_observation)
        return await asyncio.gather(*answers, return_exceptions=True)

    return asyncio.run(ask())


def test_requests_that_wait_are_served_together_up_to_max_batch() -> None:
    policy = Counting()
    requests = [request(i) for i in range(5)]
    answers = serve(policy, requests, max_batch=4)
    assert policy.batches == [4, 1]
    for asked, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, ServedChunk)
        np.testing.assert_array_equal(answer.actions_HJ, ArithmeticPolicy().infer([asked])[0].actions_HJ)
    services = [answer.service for answer in answers if isinstance(answer, ServedChunk)]
    assert [service.batch for service in services] == [4, 4, 4, 4, 1]
    assert [service.warmup for service in services] == [True] * 4 + [False]


def test_only_sizes_and_shapes_that_engines_have_are_served() -> None:
    policy = Counting()
    shape = Batching((1, 2), lambda asked: asked.episode.task_id)
    serve(policy, [request(0), request(1), request(0), request(0)], max_batch=4, batching=shape)
    assert policy.batches == [2, 1, 1]


def test_a_policy_that_serves_one_at_a_time_is_named_in_the_log_and_in_the_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "no batches with optim.denoise=Toy(); choose another optim/denoise to have them"
    monkeypatch.setattr(
        fake_run,
        "make_policy",
        lambda _: BuiltPolicy(ArithmeticPolicy(), Batching((1,), one_at_a_time=reason)),
    )
    recorded = run(tmp_path / "ray", runner="ray", workers=2, max_batch=4)
    assert f"runner.max_batch=4, but requests are served one at a time: {reason}" in caplog.messages
    said = {name: recorded.run["runner"][name] for name in ("max_batch", "batch_sizes", "one_at_a_time")}
    assert said == {"max_batch": 4, "batch_sizes": [1], "one_at_a_time": reason}
    assert {inference.batch for inference in recorded.inferences} == {1}


def test_an_error_in_a_batch_stays_with_its_episode() -> None:
    policy = Counting(broken_task=1)
    answers = serve(policy, [request(0), request(1), request(2)], max_batch=3)
    assert [type(answer) for answer in answers] == [ServedChunk, FloatingPointError, ServedChunk]


def test_what_a_policy_sets_up_in_a_call_is_no_latency() -> None:
    class Connects(ArithmeticPolicy):
        def infer(self, requests: Any) -> Any:
            time.sleep(0.3)
            return [replace(chunk, setup_ms=250.0) for chunk in super().infer(requests)]

    [answer] = serve(Connects(), [request(0)], max_batch=1)
    assert isinstance(answer, ServedChunk)
    assert 50 <= answer.service.infer_ms < 200


def test_a_policy_that_could_not_be_built_again_cuts_episodes_off() -> None:
    def broken(observe_first: Any) -> Any:
        raise OSError("no such device")

    async def ask() -> None:
        host = PolicyServer(max_batch=1, max_wait_ms=0, warmup_inferences=0, threads=1)
        with pytest.raises(OSError, match="no such device"):
            await host.build(broken, no_observation)
        with pytest.raises(PolicyLost, match="could not be built again: no such device"):
            await host.infer(request(0), False)

    asyncio.run(ask())
