"""The Ray runner: the records of the local one, whatever dies, hangs or raises on the way."""

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from numpy.typing import NDArray
from ray.exceptions import OutOfMemoryError

from eval.analysis.summary import summarise
from eval.app import CONF
from eval.config.schema import RunnerConfig, register
from eval.config.tasks import check
from eval.episodes import runner as episode_module
from eval.episodes.rollout import PolicyLost, ServedChunk
from eval.records.reader import read_run
from eval.records.resume import Changed
from eval.runners.base import RunnerError
from eval.runners.ray import start as ray_start
from eval.runners.ray.batching import Batching
from eval.runners.ray.policy_server import PolicyFacts, PolicyServer, is_device_lost
from eval.runners.ray.runner import RayRunner
from eval.runners.ray.start import launch
from eval.runners.ray.worker import RemotePolicy
from eval.runners.recorder import RunFailed
from eval.sim.env import CAMERAS
from eval.sim.stack import SimulatorError
from eval.sim.tasks import Task
from policies.base import ActionChunk, EpisodeKey, Observation, Request
from policies.files import ROOT
from tests.eval import fake_run
from tests.eval.fake_run import plan_of, results, run, start
from tests.eval.fakes import FAULTS, ArithmeticEnv, ArithmeticPolicy, make_policy, no_look, tasks, use_fakes

LIMIT_S = 600  # of a test
PROCESS_DIED = r"the policy's process died: SYSTEM_ERROR"


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Let a test that hangs fail."""

    def over(*_: Any) -> None:
        raise SystemExit(f"not over after {LIMIT_S} s")  # ray.get goes on waiting after another exception

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def kill_this_process(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_at_once(*_: Any, **__: Any) -> None:
    raise RuntimeError("the renderer gave up")


def wait_for(path: Path) -> None:
    """Return when another process has made this file."""
    while not path.exists():
        time.sleep(0.02)


@dataclass(frozen=True)
class Builds:
    """Makes a policy, and another one from the second process on; `count` says in how many processes."""

    folder: Path
    first: Callable[[], ArithmeticPolicy]
    later: Callable[[], ArithmeticPolicy] = ArithmeticPolicy

    def __call__(self, look: Callable[[], Observation]) -> tuple[ArithmeticPolicy, Batching]:
        make = self.later if self.count else self.first
        (self.folder / f"policy-{os.getpid()}").touch()
        return make(), Batching()

    @property
    def count(self) -> int:
        return len(list(self.folder.glob("policy-*")))


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these faults happen (see tests/eval/fakes.py)."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv(FAULTS, str(folder))

    def let_happen(*names: str) -> None:
        for name in names:
            (folder / name).touch()

    return let_happen


@pytest.mark.parametrize("workers", [2, 4])
def test_the_records_are_those_of_the_local_runner(tmp_path: Path, workers: int) -> None:
    local = results(run(tmp_path / "local"))
    by_ray = run(tmp_path / "ray", plan_of((2, 0, 1)), "ray", workers=workers, policies=workers // 2)
    assert results(by_ray) == local
    assert by_ray.warnings == ()
    quiet = {inference.key for inference in by_ray.inferences if not inference.under_load}
    assert quiet == {EpisodeKey("libero_spatial", 2, 0, 7)}
    assert by_ray.run["engagement"]["vision"]["calls"] == len(by_ray.inferences)
    assert not ray.is_initialized()
    assert not [child.name() for child in psutil.Process().children(recursive=True) if "ray" in child.name()]


def test_nothing_is_lost_or_doubled_when_processes_die_and_hang(
    tmp_path: Path, faults: Callable[..., None]
) -> None:
    expected = results(run(tmp_path / "local"))
    faults("kill-0-1", "segfault-1-3", "hang-2-1", "policy-kill-1-1", "gpu-2-3")
    found = run(tmp_path / "ray", runner="ray", workers=3, retries=6, episode_timeout_s=15.0)
    assert results(found) == expected
    errors = {(error.task_id, error.episode, error.error_type) for error in found.superseded}
    assert errors >= {  # and those of episodes that were running when the policy died
        (0, 1, "WorkerDied"),
        (1, 3, "WorkerDied"),
        (2, 1, "EpisodeTimeout"),
        (1, 1, "PolicyLost"),
        (2, 3, "PolicyLost"),
    }
    shown = summarise(found).errors
    assert len(shown) == len(found.superseded)
    assert all(error.retried for error in shown)
    assert any("the policy lost its GPU: CUDA error" in error.error_message for error in shown)


def test_a_worker_killed_when_its_answer_had_left_costs_no_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(run(tmp_path / "local"))
    kill_overdue = RayRunner._kill_overdue
    killed: list[int] = []

    def late(runner: RayRunner) -> None:
        """Find the running episodes overdue after their answers have left, once."""
        if len(runner._running) > 1 and not killed:
            ray.wait(list(runner._running), num_returns=len(runner._running))
            for worker in runner._running.values():
                worker.since_s = -math.inf
                killed.append(worker.number)
        kill_overdue(runner)

    monkeypatch.setattr(RayRunner, "_kill_overdue", late)
    found = run(tmp_path / "ray", runner="ray", workers=3, retries=0)
    assert results(found) == expected
    assert len(killed) > 1
    assert found.superseded == ()


def test_an_episode_that_always_kills_its_worker_is_an_error_after_the_last_retry(
    tmp_path: Path, faults: Callable[..., None]
) -> None:
    faults("always-kill-0-1", "raise-1-0", "policy-raise-2-2")
    found = run(tmp_path / "ray", plan_of(max_errors=3), "ray", workers=2, retries=1)
    errors = {(e.task_id, e.episode): e.error_type for e in found.episodes if e.success is None}
    assert errors == {(0, 1): "WorkerDied", (1, 0): "RuntimeError", (2, 2): "FloatingPointError"}
    assert len(found.episodes) == 12
    assert [(error.task_id, error.episode) for error in found.superseded] == [(0, 1)]


def test_more_errors_than_allowed_stop_the_run_and_leave_it_resumable(
    tmp_path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(run(tmp_path / "local"))
    faults("raise-0-1")
    with pytest.raises(RunFailed, match=r"1 episodes raised, more than runner\.max_errors=0"):
        run(tmp_path / "ray", runner="ray", workers=1, quiet_episodes=0)
    resumed = run(tmp_path / "ray", runner="local")
    assert results(resumed) == expected
    assert [error.error_message for error in resumed.superseded] == ["the renderer gave up"]


def test_a_policy_that_cannot_be_built_says_why() -> None:
    def broken(look: Any) -> Any:
        raise ValueError("checkpoint.path: no folder")

    with pytest.raises(ValueError, match=r"^checkpoint\.path: no folder$"):
        launch(RunnerConfig("ray", workers=1), broken, use_fakes, most_episodes=1, wants_gpu=False)
    assert not ray.is_initialized()


def test_a_machine_that_cannot_simulate_says_why() -> None:
    def broken() -> Any:
        raise SimulatorError("no GL: libEGL was not found")

    with pytest.raises(SimulatorError, match=r"^no GL: libEGL was not found$"):
        launch(RunnerConfig("ray", workers=1), make_policy, broken, most_episodes=1, wants_gpu=False)


@pytest.mark.parametrize(
    ("make_policy", "setup"), [(kill_this_process, use_fakes), (make_policy, kill_this_process)]
)
def test_a_process_that_dies_at_its_start_says_why(make_policy: Any, setup: Any) -> None:
    with pytest.raises(RunnerError, match=r"^a process of the runner did not start: SYSTEM_ERROR"):
        launch(RunnerConfig("ray", workers=1), make_policy, setup, most_episodes=1, wants_gpu=False)
    assert not ray.is_initialized()


def test_a_process_that_ray_kills_for_memory_at_its_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")  # of the machine's
    why = r"^a process of the runner did not start: \d+ worker\(s\) were killed .* low on memory\..*$"
    with pytest.raises(RunnerError, match=why):
        start("ray", workers=1)


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
    found = run(tmp_path / "ray", runner="ray", workers=1)
    assert results(found) == expected
    [error] = found.superseded
    assert (error.task_id, error.episode, error.error_type) == (1, 1, "PolicyLost")
    assert re.match(PROCESS_DIED, error.error_message or "")
    assert found.run["engagement"]["vision"]["calls"] == len(found.inferences)
    warmup = [inference for inference in found.inferences if inference.warmup]
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
    found = run(tmp_path / "ray", runner="ray", workers=1, retries=0)
    assert results(found) == expected
    assert (found.superseded, builds.count) == ((), 2)


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

    def setup() -> dict[str, Any]:
        simulator = use_fakes()
        episode_module.LiberoEnv = Steps  # type: ignore[assignment, misc]
        return simulator

    builds = Builds(tmp_path, Dies, Says)
    monkeypatch.setattr(fake_run, "make_policy", builds)
    monkeypatch.setattr(fake_run, "use_fakes", setup)
    found = run(tmp_path / "ray", plan, "ray", workers=2, retries=1, quiet_episodes=0)
    assert results(found) == expected
    assert [(error.key, error.error_type) for error in found.superseded] == [
        (killing, "PolicyLost"),
        (late, "PolicyLost"),
    ]
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
    found = read_run(tmp_path / "ray")
    messages = [error.error_message or "" for error in (*found.superseded, *found.episodes)]
    assert len(messages) == 4
    assert all(re.match(f"{PROCESS_DIED}|{reason}", message) for message in messages)


def unlike_the_first(folder: Path) -> Callable[[], dict[str, Any]]:
    """A setup that says `egl` in the first process that calls it, `osmesa` in all others."""

    def setup() -> dict[str, Any]:
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            return use_fakes() | {"gl": "osmesa"}
        return use_fakes() | {"gl": "egl"}

    return setup


def test_a_worker_that_simulates_otherwise_than_the_first_is_refused_at_the_start(tmp_path: Path) -> None:
    setup = unlike_the_first(tmp_path)
    changed = r"^a worker on .* has another .*: simulator gl was '(egl', is 'osmesa|osmesa', is 'egl)'$"
    with pytest.raises(Changed, match=changed):
        launch(RunnerConfig("ray", workers=2), make_policy, setup, most_episodes=2, wants_gpu=False)


def test_a_new_process_that_simulates_otherwise_than_the_one_that_died_rolls_nothing(
    tmp_path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_run, "use_fakes", unlike_the_first(tmp_path))
    faults("kill-0-1")
    changed = r"Changed: a worker on .*: simulator gl was 'egl', is 'osmesa'$"
    with pytest.raises(RunFailed, match=changed):
        run(tmp_path / "ray", plan_of(shard="2/12", max_errors=1), "ray", workers=1, retries=1)
    found = read_run(tmp_path / "ray")
    assert [error.error_type for error in [*found.superseded, *found.episodes]] == ["WorkerDied", "Changed"]


def test_a_worker_builds_its_first_environment_while_the_policy_is_built_and_rolls_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of((0,))
    expected = results(run(tmp_path / "local", plan))

    def build_env(task: Task) -> ArithmeticEnv:
        (tmp_path / "built").touch()
        return ArithmeticEnv(task)

    def make_policy_late(look: Callable[[], Observation]) -> tuple[ArithmeticPolicy, Batching]:
        wait_for(tmp_path / "built")
        return make_policy(look)

    def setup() -> dict[str, Any]:
        simulator = use_fakes()
        episode_module.LiberoEnv = raise_at_once  # type: ignore[assignment, misc]
        return simulator

    monkeypatch.setattr(fake_run, "build_env", build_env)
    monkeypatch.setattr(fake_run, "make_policy", make_policy_late)
    monkeypatch.setattr(fake_run, "use_fakes", setup)
    assert results(run(tmp_path / "ray", plan, "ray", workers=1)) == expected


def test_policies_see_the_start_of_the_first_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_policy_of_a_look(look: Callable[[], Observation]) -> tuple[ArithmeticPolicy, Batching]:
        (tmp_path / f"{os.getpid()}").write_text(json.dumps([look().state[0], sorted(look().images)]))
        return make_policy(look)

    env = ArithmeticEnv(tasks(3)[2])
    env.reset(EpisodeKey("libero_spatial", 2, 0, 7))
    monkeypatch.setattr(fake_run, "make_policy", make_policy_of_a_look)
    start("ray", order=plan_of((2, 0, 1)).tasks, workers=2, policies=2).close()
    seen = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert seen == [[env.state, sorted(CAMERAS)]] * 2


@pytest.mark.parametrize(
    ("breaks", "error", "message"),
    [
        (raise_at_once, RuntimeError, "^the renderer gave up$"),
        (kill_this_process, RunnerError, "^a process of the runner did not start: SYSTEM_ERROR"),
    ],
)
def test_a_look_that_fails_says_why_no_policy_was_built(
    monkeypatch: pytest.MonkeyPatch, breaks: Callable[..., Any], error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(fake_run, "build_env", breaks)
    monkeypatch.setattr(fake_run, "make_policy", lambda look: look())
    with pytest.raises(error, match=message):
        start("ray", order=tasks(1), workers=1)


@pytest.mark.parametrize(
    ("breaks", "superseded"), [(raise_at_once, []), (kill_this_process, [(0, 0, "WorkerDied")])]
)
def test_an_environment_that_cannot_be_built_ahead_is_built_for_its_episode(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[], Any],
    superseded: list[tuple[int, int, str]],
) -> None:
    expected = results(run(tmp_path / "local"))
    monkeypatch.setattr(fake_run, "build_env", breaks)
    found = run(tmp_path / "ray", runner="ray", workers=1)
    assert results(found) == expected
    assert [(error.task_id, error.episode, error.error_type) for error in found.superseded] == superseded


def test_the_quiet_episode_begins_when_all_policies_are_built_and_a_worker_for_each_episode_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_first_inference = tmp_path / "at_first_inference"

    class Marking(ArithmeticPolicy):
        def provenance(self) -> dict[str, Any]:
            (tmp_path / f"policy-{os.getpid()}").touch()
            return super().provenance()

        def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
            with contextlib.suppress(FileExistsError), at_first_inference.open("x") as file:
                file.write(json.dumps(started()))
            return super().infer(requests)

    def setup() -> dict[str, Any]:
        (tmp_path / f"worker-{os.getpid()}").touch()
        return use_fakes()

    def started() -> dict[str, int]:
        return {kind: len(list(tmp_path.glob(f"{kind}-*"))) for kind in ("policy", "worker", "env")}

    def build_env(task: Task) -> ArithmeticEnv:
        if task.task_id > 0:  # not the first worker's, which rolls the quiet episode
            time.sleep(3)
        (tmp_path / f"env-{os.getpid()}").touch()
        return ArithmeticEnv(task)

    monkeypatch.setattr(fake_run, "make_policy", lambda _: (Marking(), Batching()))
    monkeypatch.setattr(fake_run, "use_fakes", setup)
    monkeypatch.setattr(fake_run, "build_env", build_env)
    found = run(tmp_path / "ray", plan_of(shard="1/4"), "ray", workers=4, policies=2)
    assert len(found.episodes) == 3
    assert json.loads(at_first_inference.read_text()) == {"policy": 2, "worker": 3, "env": 3}
    assert started() == {"policy": 2, "worker": 3, "env": 3}


def handed_to_ray(monkeypatch: pytest.MonkeyPatch, left: Sequence[EpisodeKey], *arguments: str) -> Any:
    """What the runner is made of when these episodes of three tasks are left."""
    handed_in: dict[str, Any] = {}
    monkeypatch.setattr(ray_start, "launch", lambda *_, **options: handed_in.update(options))
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        config = check(compose("config", ["runner=ray", "protocol.seeding=openpi", *arguments]))
    ray_start.start_ray(config, tasks(3), left)
    return SimpleNamespace(**handed_in)


def test_environments_are_built_ahead_for_tasks_with_episodes_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = [EpisodeKey("libero_spatial", task, 1, 7) for task in (1, 2, 2)]
    handed = handed_to_ray(monkeypatch, left)
    assert handed.most_episodes == 3
    assert handed.prebuild.observe_at == EpisodeKey("libero_spatial", 1, 0, 7)
    built = {
        task: (build.args[0].task_id, build.keywords) for task, build in handed.prebuild.build_envs.items()
    }
    assert built == {task: (task, {"seeding": "openpi"}) for task in (1, 2)}


def test_a_run_without_episodes_left_has_a_worker_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = handed_to_ray(monkeypatch, [])
    assert (handed.most_episodes, list(handed.prebuild.build_envs)) == (1, [0])


def test_nothing_is_built_ahead_for_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [EpisodeKey("libero_spatial", 1, 0, 7)]
    assert handed_to_ray(monkeypatch, left, "policy=oracle").prebuild is None


def sleep_once(folder: Path) -> Callable[[Task], ArithmeticEnv]:
    """Builds environments, but the first call in the test hangs."""

    def build_env(task: Task) -> ArithmeticEnv:
        with contextlib.suppress(FileExistsError):
            (folder / "slept").touch(exist_ok=False)
            time.sleep(1000)
        return ArithmeticEnv(task)

    return build_env


def test_a_worker_that_hangs_before_its_first_episode_is_replaced_and_costs_none_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = results(run(tmp_path / "local"))
    monkeypatch.setattr(fake_run, "build_env", sleep_once(tmp_path))
    found = run(tmp_path / "ray", runner="ray", workers=1, retries=0, episode_timeout_s=4.0)
    assert (results(found), found.superseded) == (expected, ())
    assert "episode_timeout_s=4 is over, and worker 0 has no environment; it is replaced" in caplog.text


def test_a_policy_does_not_wait_for_ever_for_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_run, "build_env", sleep_once(tmp_path))
    monkeypatch.setattr(fake_run, "make_policy", lambda look: look())
    over = r"^runner\.episode_timeout_s=2 is over, and the first worker's environment is not built; raise it"
    with pytest.raises(RunnerError, match=over):
        start("ray", order=tasks(1), workers=1, episode_timeout_s=2.0)


def test_an_environment_that_raised_at_the_look_is_not_rolled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damaged(ArithmeticEnv):
        def reset(self, key: EpisodeKey) -> None:
            if not hasattr(self, "key"):
                self.key = key
                raise RuntimeError("the renderer gave up")
            raise AssertionError("an episode began in it")

    expected = results(run(tmp_path / "local"))
    monkeypatch.setattr(fake_run, "build_env", Damaged)
    found = run(tmp_path / "ray", runner="ray", workers=1)
    assert (results(found), found.superseded) == (expected, ())


def test_a_policy_that_hangs_is_replaced(
    tmp_path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(run(tmp_path / "local"))
    builds = Builds(tmp_path, ArithmeticPolicy)
    monkeypatch.setattr(fake_run, "make_policy", builds)
    faults("policy-hang-1-1")
    found = run(tmp_path / "ray", runner="ray", workers=2, retries=1, episode_timeout_s=5.0)
    assert results(found) == expected
    assert {error.error_type for error in found.superseded} == {"EpisodeTimeout"}
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
    found = run(tmp_path / "ray", runner="ray", workers=2, retries=1, episode_timeout_s=timeout_s)
    assert results(found) == expected
    assert {error.error_type for error in found.superseded} == {"PolicyLost"}
    assert builds.count == 2


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(RunnerError, match=r"Ray cannot be used at runner\.address=127\.0\.0\.1:1: .*refused"):
        start("ray", address="127.0.0.1:1")
    with pytest.raises(
        RunnerError, match=r"runner\.address must be HOST:PORT or auto, got 'ray://head:10001'"
    ):
        start("ray", address="ray://head:10001")


def request(task: int, episode: int = 0) -> Request:
    observation = Observation({}, np.full(8, 0.5), f"task {task}")
    return Request(observation, EpisodeKey("libero_spatial", task, episode, 7), 0)


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
    policy: Counting, requests: Sequence[Request], *, max_batch: int, batching: Batching | None = None
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
        await host.build(lambda _: (policy, batching or Batching()), no_look)
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
        fake_run, "make_policy", lambda _: (ArithmeticPolicy(), Batching((1,), one_at_a_time=reason))
    )
    found = run(tmp_path / "ray", runner="ray", workers=2, max_batch=4)
    assert f"runner.max_batch=4, but requests are served one at a time: {reason}" in caplog.messages
    said = {name: found.run["runner"][name] for name in ("max_batch", "batch_sizes", "one_at_a_time")}
    assert said == {"max_batch": 4, "batch_sizes": [1], "one_at_a_time": reason}
    assert {inference.batch for inference in found.inferences} == {1}


def test_an_error_in_a_batch_stays_with_its_episode() -> None:
    policy = Counting(broken_task=1)
    answers = serve(policy, [request(0), request(1), request(2)], max_batch=3)
    assert [type(answer) for answer in answers] == [ServedChunk, FloatingPointError, ServedChunk]


def test_running_out_of_memory_is_not_a_lost_gpu() -> None:
    assert is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_device_lost(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not is_device_lost(FloatingPointError("actions are not finite"))


def test_a_policy_that_could_not_be_built_again_cuts_episodes_off() -> None:
    def broken(look: Any) -> Any:
        raise OSError("no such device")

    async def ask() -> None:
        host = PolicyServer(max_batch=1, max_wait_ms=0, warmup_inferences=0, threads=1)
        with pytest.raises(OSError, match="no such device"):
            await host.build(broken, no_look)
        with pytest.raises(PolicyLost, match="could not be built again: no such device"):
            await host.infer(request(0), False)

    asyncio.run(ask())


@dataclass(frozen=True)
class Cluster:
    """Two Ray nodes of two cores each on this machine; `environ` is that of those who join."""

    address: str
    environ: dict[str, str]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with a token of its own, in processes that this test ends."""
    home = tmp_path / "home"
    home.mkdir()
    ours = {name: value for name, value in os.environ.items() if name != "RAY_max_direct_call_object_size"}
    environ = ours | {  # without what a runner on this machine has set for itself
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    ray_command = str(Path(sys.executable).with_name("ray"))
    port = free_port()
    quiet: dict[str, Any] = {"env": environ, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([ray_command, "get-auth-token", "--generate"], check=True, **quiet)
    common = ["--num-cpus=2", "--object-store-memory=100000000", "--block"]
    nodes = (["--head", f"--port={port}", "--include-dashboard=false"], [f"--address=127.0.0.1:{port}"])
    started: list[subprocess.Popen[bytes]] = []
    try:
        for node in nodes:
            started.append(subprocess.Popen([ray_command, "start", *node, *common], **quiet))
            wait_for_nodes(f"127.0.0.1:{port}", len(started), environ)
        yield Cluster(f"127.0.0.1:{port}", environ)
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_nodes(address: str, count: int, environ: dict[str, str]) -> None:
    """Return when so many nodes have joined."""
    ask = "import ray, sys; ray.init(sys.argv[1], logging_level=50); print(len(ray.nodes()))"
    host, port = address.split(":")
    for _ in range(30):
        time.sleep(1)
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            command = [sys.executable, "-c", ask, address]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if done.stdout.strip() == str(count):
                return
    pytest.fail(f"{count} Ray nodes did not start at {address}")


def test_two_nodes_joined_by_an_address_record_the_same(tmp_path: Path, cluster: Cluster) -> None:
    def join(workers: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.eval.fake_run", str(tmp_path / "ray"), "ray"]
        options = [json.dumps({"address": cluster.address, "workers": workers})]
        return subprocess.run(
            [*command, *options], cwd=ROOT, env=cluster.environ, capture_output=True, text=True, check=False
        )

    assert re.search(r"need 10 CPUs, the cluster at .* has 4", join(workers=9).stderr)
    done = join(workers=3)
    assert done.returncode == 0, done.stderr
    found = read_run(tmp_path / "ray")
    assert results(found) == results(run(tmp_path / "local"))
    assert found.run["runner"]["nodes"] == 2
