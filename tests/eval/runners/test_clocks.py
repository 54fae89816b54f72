"""With a given latency an episode is a function of its key, however the run was made."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.episodes.clock import Clock, Drawn, Fixed, Measured
from eval.episodes.rollout import Rollout, run_episode
from eval.records.reader import Run
from eval.runners.recorder import RunFailed
from policies.base import ActionChunk, EpisodeKey, GuideOptions
from tests.eval.fake_run import plan_of, results, run
from tests.eval.fakes import ArithmeticEnv, ArithmeticPolicy, tasks

ASYNC = Clock("async", Fixed(30.0))  # d = 1: the policy's chunks have 4 actions, of which it replans after 3
WAIT = Clock("wait", Fixed(130.0))
RTC = Clock("rtc", Fixed(30.0), guide=GuideOptions(5.0))
DRAWN = Clock("wait", Drawn((20.0, 70.0, 130.0, 49.9)))


def all_results(recorded: Run) -> dict[Any, Any]:
    """The records' results, and what their clocks did."""
    clocks = {episode.key: episode.clock for episode in recorded.episodes}
    charged = {(i.key, i.call): i.charged_ms for i in recorded.inferences}
    return {"episodes": results(recorded), "clocks": clocks, "charged": charged}


@pytest.mark.parametrize("clock", [ASYNC, WAIT, DRAWN, RTC], ids=["async", "wait", "drawn", "rtc"])
def test_order_and_resume_change_nothing(clock: Clock, tmp_path: Path) -> None:
    whole = all_results(run(tmp_path / "whole", plan_of(clock=clock)))
    assert whole["episodes"] != results(run(tmp_path / "free"))
    assert all_results(run(tmp_path / "shuffled", plan_of((2, 0, 1), clock=clock))) == whole
    halves = [all_results(run(tmp_path / f"{i}", plan_of(shard=f"{i}/2", clock=clock))) for i in (1, 2)]
    assert {key: {**halves[0][key], **halves[1][key]} for key in whole} == whole
    cut = tmp_path / "cut"
    run(cut, plan_of(clock=clock))
    for name in ("episodes.jsonl", "inferences.jsonl"):
        lines = (cut / name).read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["task_id"] == 0]
        (cut / name).write_text("".join(f"{line}\n" for line in kept))
    assert all_results(run(cut, plan_of(clock=clock))) == whole


@pytest.mark.parametrize(
    ("clock", "options"),
    [
        (ASYNC, {"workers": 1}),
        (ASYNC, {"workers": 4}),
        (RTC, {"workers": 4, "max_batch": 4, "max_wait_ms": 20.0}),  # first and later calls in one batch
    ],
    ids=["async, 1 worker", "async, 4 workers", "rtc, 4 workers in batches"],
)
def test_workers_change_nothing(clock: Clock, options: dict[str, Any], tmp_path: Path) -> None:
    whole = all_results(run(tmp_path / "local", plan_of(clock=clock)))
    recorded = run(tmp_path / "ray", plan_of(clock=clock), "ray", **options)
    assert all_results(recorded) == whole
    if "max_batch" in options:
        assert max(inference.batch for inference in recorded.inferences) > 1


def test_guidance_changes_what_is_executed_(tmp_path: Path) -> None:
    free, guided = (run(tmp_path / clock.mode, plan_of(clock=clock)) for clock in (ASYNC, RTC))
    assert results(free) != results(guided)
    assert all(episode.clock is not None and episode.clock.mode == "rtc" for episode in guided.episodes)


@pytest.mark.parametrize("mode", ["wait", "async"])
def test_no_latency_is_free_to_the_bit(mode: str, tmp_path: Path) -> None:
    free = results(run(tmp_path / "free"))
    clock = Clock(mode, Fixed(0.0))  # type: ignore[arg-type]
    assert results(run(tmp_path / "clock", plan_of(clock=clock))) == free


def test_held_steps_count_towards_the_limit(tmp_path: Path) -> None:
    recorded = run(tmp_path / "run", plan_of(clock=Clock("wait", Fixed(5000.0)), max_steps=30))
    for episode in recorded.episodes:
        assert episode.success is not None
        assert episode.steps <= 30
        assert episode.clock is not None
        assert episode.clock.robot_s == pytest.approx(episode.steps * 0.05)
    longest = max(recorded.episodes, key=lambda episode: episode.steps)
    assert longest.clock is not None
    assert longest.clock.held_steps == longest.steps == 30


class SlowAtFirst(ArithmeticPolicy):
    """Its first inference takes half a second of its own time, the others 4 ms."""

    now_s = 0.0

    def infer(self, requests: Any) -> list[ActionChunk]:
        self.now_s += 0.004 if self.calls else 0.5
        return super().infer(requests)


def test_what_warms_up_is_asked_once_and_not_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, charged = SlowAtFirst(), []
    monkeypatch.setattr("eval.episodes.rollout.time.perf_counter", lambda: policy.now_s)
    run_episode(
        ArithmeticEnv(tasks(1)[0]),  # type: ignore[arg-type]
        policy,
        EpisodeKey("libero_spatial", 0, 1, 7),
        6,
        Rollout(),
        lambda record: charged.append((record.charged_ms, record.warmup)),
        warmup_inferences=1,
        clock=Clock("async", Measured()),
    )
    assert [warmup for _, warmup in charged] == [True, False]
    np.testing.assert_allclose([ms for ms, _ in charged], [0.0, 4.0])
    assert policy.calls == 2  # one for each inference: a second one would move a policy with a memory on


def test_free_charges_nothing_and_records_nothing(tmp_path: Path) -> None:
    recorded = run(tmp_path / "run")
    assert {episode.clock for episode in recorded.episodes} == {None}
    assert {inference.charged_ms for inference in recorded.inferences} == {None}


def test_a_delay_that_the_chunks_cannot_serve_is_the_episodes_error(tmp_path: Path) -> None:
    clock = replace(ASYNC, latency=Fixed(60.0))
    with pytest.raises(RunFailed, match=r"clock=async needs s <= H - d .* s = 3, H = 4 and d = 2"):
        run(tmp_path / "run", plan_of(clock=clock))
