"""Recording: observations are spread over a run and load bit-equal; the policy notices nothing."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.records.observations import load_requests, save_requests
from eval.records.recording import (
    OBSERVATIONS_FILE,
    RecordingPolicy,
    load_recording,
    save_recording,
)
from eval.runners.local import LocalRunner
from policies.base import ActionChunk, EpisodeKey, Observation, Request


class CountingPolicy:
    """Answers call number n with actions of n."""

    name = "counting"
    cameras: tuple[str, ...] = ("agentview_image",)
    needs_privileged = False
    replan_steps = 5

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        self.calls += len(requests)
        return [ActionChunk(np.full((10, 7), float(request.call))) for request in requests]

    def provenance(self) -> dict[str, Any]:
        return {"checkpoint": "none"}

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {"vision": {"backend": "eager", "calls": self.calls, "misses": 0}}


def request_of(call: int) -> Request:
    image = np.full((4, 4, 3), call % 256, dtype=np.uint8)
    observation = Observation({"agentview_image": image}, np.arange(8.0), "pick up the black bowl")
    return Request(observation, EpisodeKey("libero_spatial", 0, 0, 7), call)


@pytest.mark.parametrize("total", [1, 7, 8, 15, 16, 17, 100, 1000])
def test_at_most_count_are_kept_evenly_over_all_calls(total: int) -> None:
    policy = RecordingPolicy(CountingPolicy(), 8)
    for call in range(total):
        policy.infer([request_of(call)])
        assert len(policy._samples) < 16
    calls = [request.call for request, _ in policy.samples()]
    assert len(calls) == min(8, total)
    assert calls[0] == 0
    gaps = np.diff([*calls, total])
    assert gaps.max() <= 2 * max(1, gaps.min()) + total // 8
    assert calls[-1] >= total // 2


def test_the_policy_behind_is_asked_once_and_answers_unchanged() -> None:
    inner = CountingPolicy()
    policy = RecordingPolicy(inner, 2)
    chunks = policy.infer([request_of(3), request_of(4)])
    assert inner.calls == 2
    assert [chunk.actions_HJ[0, 0] for chunk in chunks] == [3.0, 4.0]
    assert (policy.name, policy.cameras, policy.replan_steps) == ("counting", inner.cameras, 5)
    assert policy.engagement() == inner.engagement()
    assert policy.provenance() == inner.provenance()


def test_a_recording_loads_bit_equal_and_is_a_file_of_requests_too(tmp_path: Path) -> None:
    kept = [(request_of(call), np.random.default_rng(call).normal(size=(10, 7))) for call in range(3)]
    path = tmp_path / "run" / OBSERVATIONS_FILE
    save_recording(path, kept)
    loaded = load_recording(path)
    for (old, old_actions), (new, new_actions) in zip(kept, loaded, strict=True):
        assert (new.episode, new.call) == (old.episode, old.call)
        assert np.array_equal(
            new.observation.images["agentview_image"], old.observation.images["agentview_image"]
        )
        assert new_actions.tobytes() == old_actions.tobytes()
    assert len(load_requests(path)) == 3
    assert [file.name for file in path.parent.iterdir()] == [OBSERVATIONS_FILE]


def test_a_runner_writes_what_its_policy_recorded_when_it_is_closed(tmp_path: Path) -> None:
    policy = RecordingPolicy(CountingPolicy(), 4)
    runner = LocalRunner(policy, {}, on_close=lambda: policy.save(tmp_path / OBSERVATIONS_FILE))

    def interrupted() -> None:
        with closing(runner):
            for call in range(10):
                runner.policy.infer([request_of(call)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(load_recording(tmp_path / OBSERVATIONS_FILE)) == 4


def test_a_run_that_goes_on_adds_to_its_recording(tmp_path: Path) -> None:
    for start in (0, 100):
        policy = RecordingPolicy(CountingPolicy(), 4)
        for call in range(start, start + 4):
            policy.infer([request_of(call)])
        policy.save(tmp_path / OBSERVATIONS_FILE)
    calls = [request.call for request, _ in load_recording(tmp_path / OBSERVATIONS_FILE)]
    assert calls == [0, 2, 100, 102]


def test_a_run_without_inferences_writes_nothing(tmp_path: Path) -> None:
    RecordingPolicy(CountingPolicy(), 4).save(tmp_path / OBSERVATIONS_FILE)
    assert not list(tmp_path.iterdir())


def test_blind_policies_and_counts_that_keep_nothing_are_refused() -> None:
    blind = CountingPolicy()
    blind.cameras = ()
    with pytest.raises(ValueError, match="record_observations must be 0 with policy counting"):
        RecordingPolicy(blind, 4)
    with pytest.raises(ValueError, match="record_observations must be >= 1"):
        RecordingPolicy(CountingPolicy(), 0)


def test_a_missing_recording_and_one_without_actions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / OBSERVATIONS_FILE
    with pytest.raises(FileNotFoundError, match="record_observations=16"):
        load_recording(path)
    save_requests(path, [request_of(0)])
    with pytest.raises(ValueError, match="does not hold the actions"):
        load_recording(path)
