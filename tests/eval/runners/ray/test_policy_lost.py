"""A policy that dies or hangs is replaced, and no episode pays for the process that starts."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from ray.exceptions import OutOfMemoryError

from eval.config.schema import RunnerConfig
from eval.episodes.rollout import PolicyLost
from eval.records.reader import read_run
from eval.runners.base import RunnerError
from eval.runners.ray.policy_server import PolicyFacts
from eval.runners.ray.start import launch
from eval.runners.ray.worker import RemotePolicy
from eval.runners.recorder import RunFailed
from policies.base import ActionChunk, Request
from tests.eval import fake_run
from tests.eval.fake_run import plan_of, results, run
from tests.eval.fakes import ArithmeticEnv, ArithmeticPolicy, use_fakes
from tests.eval.runners.ray.faulty import PROCESS_DIED, Builds, kill_this_process, request, wait_for


def test_a_policy_that_ray_kills_for_memory_cuts_the_episode_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answers: Any) -> Any:
        raise OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.\nMemory: ...")

    class Host:
        def __getattr__(self, name: str) -> Any:
            return self

        def remote(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(ray, "get", get)
    policy = RemotePolicy(Host(), PolicyFacts("arithmetic", (), False, 3, {}, None, None))
    with pytest.raises(PolicyLost, match=r"^the policy's process died: 1 worker.* running low on memory\.$"):
        policy.infer([request(0)])
    assert policy.report() == ("", {})


def test_a_policy_that_dies_is_replaced_by_one_that_warms_up_and_its_calls_count(
    tmp_path: Path, faults: Callable[..., None]
) -> None:
    expected = results(run(tmp_path / "local"))
    faults("policy-kill-1-1")
    recorded = run(tmp_path / "ray", runner="ray", workers=1)
    assert results(recorded) == expected
    [error] = recorded.superseded
    assert (error.task_id, error.episode, error.error_type) == (1, 1, "PolicyLost")
    assert re.match(PROCESS_DIED, error.error_message or "")
    assert recorded.run["engagement"]["vision"]["calls"] == len(recorded.inferences)
    warmup = [inference for inference in recorded.inferences if inference.warmup]
    assert len(warmup) == 2 * RunnerConfig("ray").warmup_inferences


def test_a_policy_that_dies_between_episodes_is_replaced_and_costs_none_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiesWhenAskedForCalls(ArithmeticPolicy):
        def engagement(self) -> dict[str, Any]:
            kill_this_process()
            raise AssertionError

    expected = results(run(tmp_path / "local"))
    builds = Builds(tmp_path, DiesWhenAskedForCalls)
    monkeypatch.setattr(fake_run, "make_policy", builds)
    recorded = run(tmp_path / "ray", runner="ray", workers=1, retries=0)
    assert results(recorded) == expected
    assert (recorded.superseded, builds.count) == ((), 2)


def test_a_late_answer_of_a_policy_that_died_does_not_end_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(shard="2/6")
    expected = results(run(tmp_path / "local", plan))
    late, killing = plan.episodes.keys()
    assert all(inferences > 1 for _, _, inferences, _, _ in expected.values())

    class Dies(ArithmeticPolicy):
        def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
            if (requests[0].episode, requests[0].call) == (killing, 1):
                kill_this_process()
            return super().infer(requests)

    class Says(ArithmeticPolicy):
        def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
            (tmp_path / "replaced").touch()
            return super().infer(requests)

    class Steps(ArithmeticEnv):
        """The late episode's first step begins before the policy dies and ends when another one serves."""

        def step(self, action: NDArray[np.float64]) -> bool:
            if self.steps == 0 and self.key == late:
                (tmp_path / "stepping").touch()
                wait_for(tmp_path / "replaced")
            elif self.steps == 0:
                wait_for(tmp_path / "stepping")
            return super().step(action)

    builds = Builds(tmp_path, Dies, Says)
    monkeypatch.setattr(fake_run, "make_policy", builds)
    monkeypatch.setattr(fake_run, "build_env", Steps)
    plan = replace(plan, make_env=Steps)
    recorded = run(tmp_path / "ray", plan, "ray", workers=2, retries=1, quiet_episodes=0)
    assert results(recorded) == expected
    errors = [(error.key, error.error_type) for error in recorded.superseded]  # as their retries ended
    assert sorted(errors) == sorted([(killing, "PolicyLost"), (late, "PolicyLost")])
    assert builds.count == 2


class DiesAtOnce(ArithmeticPolicy):
    """Its process dies at the first inference."""

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        kill_this_process()
        raise AssertionError


def no_device() -> ArithmeticPolicy:
    raise OSError("no such device")


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        (DiesAtOnce, PROCESS_DIED),
        (kill_this_process, PROCESS_DIED),
        (no_device, "the policy could not be built again: no such device"),
    ],
)
def test_a_policy_that_dies_again_and_again_ends_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Any, reason: str
) -> None:
    builds = Builds(tmp_path, DiesAtOnce, later)
    monkeypatch.setattr(fake_run, "make_policy", builds)
    failed = r"2 episodes raised, more than runner\.max_errors=1; the last was .*: PolicyLost: "
    with pytest.raises(RunFailed, match=failed + reason):
        run(tmp_path / "ray", plan_of(shard="2/6", max_errors=1), "ray", workers=2, retries=1)
    assert builds.count == 3  # for the quiet attempt; for both episodes; for the other one again
    recorded = read_run(tmp_path / "ray")
    messages = [error.error_message or "" for error in (*recorded.superseded, *recorded.episodes)]
    assert len(messages) == 4
    assert all(re.match(f"{PROCESS_DIED}|{reason}", message) for message in messages)


def test_a_policy_that_hangs_is_replaced(
    tmp_path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(run(tmp_path / "local"))
    builds = Builds(tmp_path, ArithmeticPolicy)
    monkeypatch.setattr(fake_run, "make_policy", builds)
    faults("policy-hang-1-1")
    recorded = run(tmp_path / "ray", runner="ray", workers=2, retries=1, episode_timeout_s=5.0)
    assert results(recorded) == expected
    assert {error.error_type for error in recorded.superseded} == {"EpisodeTimeout"}
    assert builds.count == 2


def test_episodes_do_not_pay_for_a_policy_that_is_built_longer_than_they_may_take(
    tmp_path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout_s = 8.0

    def late() -> ArithmeticPolicy:
        time.sleep(timeout_s + 2)
        return ArithmeticPolicy()

    expected = results(run(tmp_path / "local"))
    builds = Builds(tmp_path, ArithmeticPolicy, late)
    monkeypatch.setattr(fake_run, "make_policy", builds)
    faults("policy-kill-1-1")
    recorded = run(tmp_path / "ray", runner="ray", workers=2, retries=1, episode_timeout_s=timeout_s)
    assert results(recorded) == expected
    assert {error.error_type for error in recorded.superseded} == {"PolicyLost"}
    assert builds.count == 2


def sleep_for_ever(*_: Any) -> Any:
    time.sleep(1000)


def hang_later(folder: Path) -> Callable[[], dict[str, Any]]:
    """A setup that hangs from its second process on."""

    def setup() -> dict[str, Any]:
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            sleep_for_ever()
        return use_fakes()

    return setup


@pytest.mark.parametrize(
    ("fault", "stuck"), [("policy-kill-1-1", "a policy process"), ("kill-1-1", "worker 0")]
)
def test_a_process_that_never_starts_again_ends_the_run(
    tmp_path: Path,
    faults: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    stuck: str,
) -> None:
    start = fake_run.start

    def start_and_wait_no_longer(*arguments: Any, **options: Any) -> Any:
        runner = start(*arguments, **options)
        runner.options.start_timeout_s = 1.0  # the first start takes what it takes
        return runner

    monkeypatch.setattr(fake_run, "start", start_and_wait_no_longer)
    monkeypatch.setattr(fake_run, "make_policy", Builds(tmp_path, ArithmeticPolicy, sleep_for_ever))
    monkeypatch.setattr(fake_run, "use_fakes", hang_later(tmp_path))
    faults(fault)
    stuck_line = rf"^{stuck} was started again and is not ready after runner\.start_timeout_s=1; raise it"
    with pytest.raises(RunFailed, match=stuck_line):
        run(tmp_path / "ray", runner="ray", workers=1, retries=2)


def test_a_policy_that_is_never_built_ends_the_start() -> None:
    late = r"^a process of the runner is not ready after runner\.start_timeout_s=2; raise it"
    with pytest.raises(RunnerError, match=late):
        launch(
            RunnerConfig("ray", workers=1, start_timeout_s=2.0),
            sleep_for_ever,
            use_fakes,
            most_episodes=1,
            wants_gpu=False,
        )
    assert not ray.is_initialized()
