"""The start of the Ray runner: what is built ahead, and what stops it."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.app.command import CONF
from eval.config.compose import check
from eval.config.schema import RunnerConfig, register
from eval.runners.base import RunnerError
from eval.runners.ray import start as ray_start
from eval.runners.ray.start import launch
from eval.sim.env import CAMERAS
from eval.sim.stack import SimulatorError
from eval.sim.tasks import Task
from eval.specs.base import BuiltPolicy
from eval.specs.choose import make_spec
from policies.base import ActionChunk, EpisodeKey, Observation, Request
from tests.eval import fake_run
from tests.eval.fake_run import plan_of, results, run, start
from tests.eval.fakes import ArithmeticEnv, ArithmeticPolicy, make_policy, tasks, use_fakes
from tests.eval.runners.ray.faulty import kill_this_process, raise_at_once, wait_for


def test_a_policy_that_cannot_be_built_says_why() -> None:
    def broken(observe_first: Any) -> Any:
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


def test_a_worker_builds_its_first_environment_while_the_policy_is_built_and_rolls_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of((0,))
    expected = results(run(tmp_path / "local", plan))

    def build_env(task: Task) -> ArithmeticEnv:
        (tmp_path / "built").touch()
        return ArithmeticEnv(task)

    def make_policy_late(observe_first: Callable[[], Observation]) -> BuiltPolicy:
        wait_for(tmp_path / "built")
        return make_policy(observe_first)

    monkeypatch.setattr(fake_run, "build_env", build_env)
    monkeypatch.setattr(fake_run, "make_policy", make_policy_late)
    plan = replace(plan, make_env=raise_at_once)
    assert results(run(tmp_path / "ray", plan, "ray", workers=1)) == expected


def test_policies_see_the_start_of_the_first_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_policy_of_a_look(observe_first: Callable[[], Observation]) -> BuiltPolicy:
        (tmp_path / f"{os.getpid()}").write_text(
            json.dumps([observe_first().state[0], sorted(observe_first().images)])
        )
        return make_policy(observe_first)

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
    monkeypatch.setattr(fake_run, "make_policy", lambda observe_first: observe_first())
    with pytest.raises(error, match=message):
        start("ray", order=tasks(1), workers=1)


@pytest.mark.parametrize("breaks", [raise_at_once, kill_this_process])
def test_an_environment_that_cannot_be_built_ahead_is_built_for_its_episode_and_costs_none_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[], Any]
) -> None:
    expected = results(run(tmp_path / "local"))
    monkeypatch.setattr(fake_run, "build_env", breaks)
    recorded = run(tmp_path / "ray", runner="ray", workers=1, retries=0)
    assert (results(recorded), recorded.superseded) == (expected, ())


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

    monkeypatch.setattr(fake_run, "make_policy", lambda _: BuiltPolicy(Marking()))
    monkeypatch.setattr(fake_run, "use_fakes", setup)
    monkeypatch.setattr(fake_run, "build_env", build_env)
    recorded = run(tmp_path / "ray", plan_of(shard="1/4"), "ray", workers=4, policies=2)
    assert len(recorded.episodes) == 3
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
    ray_start.start_ray(config, make_spec(config.policy), tasks(3), left)
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
    recorded = run(tmp_path / "ray", runner="ray", workers=1, retries=0, episode_timeout_s=4.0)
    assert (results(recorded), recorded.superseded) == (expected, ())
    replaced = "worker 0 has no environment and is replaced: runner.episode_timeout_s=4 is over"
    assert replaced in caplog.text


def test_a_policy_does_not_wait_for_ever_for_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_run, "build_env", sleep_once(tmp_path))
    monkeypatch.setattr(fake_run, "make_policy", lambda observe_first: observe_first())
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
    recorded = run(tmp_path / "ray", runner="ray", workers=1)
    assert (results(recorded), recorded.superseded) == (expected, ())
