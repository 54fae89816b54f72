"""The Ray runner: the records of the local one, whatever dies, hangs or raises on the way."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from eval.analysis.summary import summarise
from eval.config.schema import RunnerConfig
from eval.records.reader import read_run
from eval.records.resume import Changed
from eval.runners.ray.runner import RayRunner
from eval.runners.ray.start import launch
from eval.runners.recorder import RunFailed
from policies.base import EpisodeKey
from tests.eval import fake_run
from tests.eval.fake_run import plan_of, results, run
from tests.eval.fakes import make_policy, use_fakes


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
    recorded = run(tmp_path / "ray", runner="ray", workers=3, retries=6, episode_timeout_s=15.0)
    assert results(recorded) == expected
    errors = {(error.task_id, error.episode, error.error_type) for error in recorded.superseded}
    assert errors >= {  # and those of episodes that were running when the policy died
        (0, 1, "WorkerDied"),
        (1, 3, "WorkerDied"),
        (2, 1, "EpisodeTimeout"),
        (1, 1, "PolicyLost"),
        (2, 3, "PolicyLost"),
    }
    shown = summarise(recorded).errors
    assert len(shown) == len(recorded.superseded)
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
    recorded = run(tmp_path / "ray", runner="ray", workers=3, retries=0)
    assert results(recorded) == expected
    assert len(killed) > 1
    assert recorded.superseded == ()


def test_an_episode_that_always_kills_its_worker_is_an_error_after_the_last_retry(
    tmp_path: Path, faults: Callable[..., None]
) -> None:
    faults("always-kill-0-1", "raise-1-0", "policy-raise-2-2")
    recorded = run(tmp_path / "ray", plan_of(max_errors=3), "ray", workers=2, retries=1)
    errors = {(e.task_id, e.episode): e.error_type for e in recorded.episodes if e.success is None}
    assert errors == {(0, 1): "WorkerDied", (1, 0): "RuntimeError", (2, 2): "FloatingPointError"}
    assert len(recorded.episodes) == 12
    assert [(error.task_id, error.episode) for error in recorded.superseded] == [(0, 1)]


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
    recorded = read_run(tmp_path / "ray")
    assert [error.error_type for error in [*recorded.superseded, *recorded.episodes]] == [
        "WorkerDied",
        "Changed",
    ]
