"""Metrics: counts, intervals and percentiles against known values, whatever the order of the records."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from eval.analysis.latency import latency_stats
from eval.analysis.summary import success_rate, summarise
from eval.records.reader import Run
from eval.records.schema import ClockRecord, EpisodeRecord, InferenceRecord
from eval.render.summary import render

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]


@pytest.mark.parametrize(
    ("successes", "finished", "low", "high"),
    [
        (97, 100, 0.9155, 0.9897),
        (10, 10, 0.7225, 1.0),  # lower limit n / (n + 1.96^2)
        # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(
    make_episode: Episode, successes: int, finished: int, low: float, high: float
) -> None:
    rate = success_rate(make_episode(success=i < successes) for i in range(finished))
    assert (rate.successes, rate.finished) == (successes, finished)
    assert rate.rate == successes / finished
    assert rate.low == pytest.approx(low, abs=6e-5)
    assert rate.high == pytest.approx(high, abs=6e-5)


def test_errors_are_in_neither_part_of_the_rate(make_episode: Episode) -> None:
    rate = success_rate(
        [make_episode(), make_episode(success=False), make_episode(error_type="RuntimeError")]
    )
    assert (rate.successes, rate.finished, rate.errors, rate.rate) == (1, 2, 1, 0.5)


def test_only_errors_give_no_rate(make_episode: Episode) -> None:
    rate = success_rate([make_episode(error_type="RuntimeError")])
    assert (rate.finished, rate.errors, rate.rate, rate.low, rate.high) == (0, 1, None, None, None)


def test_percentiles_interpolate_linearly() -> None:
    stats = latency_stats([float(ms) for ms in range(1, 101)])
    assert (stats.n, stats.p50_ms, stats.p95_ms, stats.p99_ms) == (100, 50.5, 95.05, 99.01)
    assert stats.mean_ms == 50.5
    assert stats.hz == pytest.approx(1000 / 50.5)
    assert stats.p95_ms == np.percentile(np.arange(1, 101), 95)


@pytest.mark.parametrize("latencies_ms", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_latencies_that_cannot_be_are_refused(latencies_ms: list[float]) -> None:
    with pytest.raises(ValueError, match="latenc"):
        latency_stats(latencies_ms)


def test_warmup_is_left_out_and_counted(
    make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    inferences = (
        make_inference(call=0, infer_ms=900.0, warmup=True),
        make_inference(call=1, infer_ms=20.0, stage_ms={"vision": 4.0, "denoise": 6.0}),
        make_inference(call=2, infer_ms=30.0, stage_ms={"denoise": 8.0}),
    )
    summary = summarise(Run(run_json, (make_episode(inferences=3),), inferences))
    assert summary.warmup_inferences == 1
    assert summary.infer is not None
    assert (summary.infer.n, summary.infer.mean_ms) == (2, 25.0)
    assert {stage: (stats.n, stats.mean_ms) for stage, stats in summary.stages.items()} == {
        "vision": (1, 4.0),
        "denoise": (2, 7.0),
        "around the stages": (2, 16.0),  # 10 and 22
    }
    assert summary.quiet_episodes == 1


def test_each_task_and_each_suite_has_its_own_rate(make_episode: Episode, run_json: dict[str, Any]) -> None:
    episodes = (
        make_episode(task_id=1, instruction="one", success=False),
        make_episode(task_id=0),
        make_episode(task_id=0, episode=1, error_type="RuntimeError"),
        make_episode(suite="libero_10", instruction="long"),
    )
    summary = summarise(Run({**run_json, "planned_episodes": 4}, episodes, ()))
    rates = [
        (t.suite, t.task_id, t.success.successes, t.success.finished, t.success.errors) for t in summary.tasks
    ]
    assert rates == [
        ("libero_10", 0, 1, 1, 0),
        ("libero_spatial", 0, 1, 1, 1),
        ("libero_spatial", 1, 0, 1, 0),
    ]
    assert summary.suites["libero_spatial"].rate == 0.5
    assert summary.total.rate == pytest.approx(2 / 3)
    assert summary.warnings == ()


def test_a_retried_error_is_shown_and_not_counted(make_episode: Episode, run_json: dict[str, Any]) -> None:
    error = make_episode(error_type="RuntimeError")
    summary = summarise(Run(run_json, (make_episode(),), (), superseded=(error,)))
    assert (summary.total.successes, summary.total.errors) == (1, 0)
    assert [(e.error_type, e.error_message, e.retried) for e in summary.errors] == [
        ("RuntimeError", "GL context lost", True)
    ]


def test_a_backend_that_did_not_serve_is_a_warning(
    make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    engagement = {
        "vision": {"backend": "tensorrt_fp8", "calls": 0, "misses": 0},
        "prefix": {"backend": "tensorrt_fp8", "calls": 1, "misses": 3},
        "denoise": {"backend": "compile", "calls": 1, "misses": 0},
    }
    run = Run(
        {**run_json, "engagement": engagement},
        (make_episode(inferences=1),),
        (make_inference(),),
        warnings=("read",),
    )
    assert summarise(run).warnings == (
        "read",
        "vision: tensorrt_fp8 never engaged",
        "prefix: 3 calls missed tensorrt_fp8",
        "denoise: inferences were served by ['cuda_graph'] besides compile",
    )


def test_a_stage_that_inferences_name_and_run_json_lacks_is_a_warning(
    make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    reported = {stage: served for stage, served in run_json["engagement"].items() if stage != "denoise"}
    run = Run({**run_json, "engagement": reported}, (make_episode(inferences=1),), (make_inference(),))
    assert summarise(run).warnings == ("denoise: run.json does not say who served it",)


def test_what_run_json_does_not_say_is_a_warning(make_episode: Episode) -> None:
    summary = summarise(Run({"gl_backend": "egl"}, (make_episode(),), ()))
    assert summary.warnings == tuple(
        f"run.json does not say {key}"
        for key in (
            "weights_label",
            "engagement",
            "provenance",
            "planned_episodes",
            "tracking_error",
            "video_error",
        )
    )


def test_missing_episodes_and_stopped_tracking_are_warnings(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    run = Run({**run_json, "planned_episodes": 9, "tracking_error": "disk full"}, (make_episode(),), ())
    assert summarise(run).warnings == (
        "1 of 9 planned episodes are recorded",
        "tracking stopped: disk full",
    )


def test_batches_that_a_backend_refused_are_a_warning(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    reason = "no batches with optim.denoise=Fused(kernel='ring')"
    run = Run({**run_json, "runner": {"name": "ray", "one_at_a_time": reason}}, (make_episode(),), ())
    assert f"requests were served one at a time: {reason}" in summarise(run).warnings


@pytest.mark.parametrize("field", ["policy", "checkpoint", "checkpoint_sha256", "seeding"])
def test_a_mixture_has_no_summary(make_episode: Episode, run_json: dict[str, Any], field: str) -> None:
    other = make_episode(episode=1, **{field: "openpi"})
    with pytest.raises(ValueError, match=f"one run must have one .*{field}.*openpi"):
        summarise(Run(run_json, (make_episode(), other), ()))


def test_no_episodes_have_no_summary(run_json: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no episode records"):
        summarise(Run(run_json, (), ()))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_summary_does_not_depend_on_the_order_of_records(
    data: st.DataObject, make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    keys = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["libero_spatial", "libero_10"]), st.integers(0, 2), st.integers(0, 9)),
            min_size=1,
            max_size=12,
            unique=True,
        )
    )
    episodes, inferences = [], []
    for suite, task_id, episode in keys:
        key = {"suite": suite, "task_id": task_id, "episode": episode}
        outcome = data.draw(
            st.sampled_from([{"success": True}, {"success": False}, {"error_type": "OSError"}])
        )
        times_ms = data.draw(st.lists(st.floats(0.1, 1000), max_size=4))
        episodes.append(make_episode(**key, **outcome, inferences=len(times_ms)))
        inferences += [
            make_inference(**key, call=call, infer_ms=ms, stage_ms={"vision": ms / 3, "denoise": ms / 7})
            for call, ms in enumerate(times_ms)
        ]
    run = Run(run_json, tuple(episodes), tuple(inferences))
    shuffled = replace(
        run,
        episodes=tuple(data.draw(st.permutations(episodes))),
        inferences=tuple(data.draw(st.permutations(inferences))),
    )
    assert summarise(shuffled) == summarise(run)
    assert json.dumps(summarise(shuffled).to_dict()) == json.dumps(summarise(run).to_dict())


@pytest.mark.parametrize(
    ("config", "says", "reproducible"),
    [
        ({"latency_ms": 200}, "200 ms", True),
        ({"latency_ms": "measured"}, "measured", False),
        ({"latency_from": "bench.json", "latency_policy": "baseline"}, "of baseline in bench.json", True),
    ],
)
def test_what_the_clock_did_is_summed_up_over_finished_episodes(
    make_episode: Episode, run_json: dict[str, Any], config: dict[str, Any], says: str, reproducible: bool
) -> None:
    def clock(robot_s: float, held: int, age: float | None) -> ClockRecord:
        return ClockRecord("async", 2.0, robot_s, held, 4.0, 4, age, 9, 0.25, 1.0, 198.0 + held)

    episodes = (
        make_episode(episode=0, clock=clock(3.0, 4, 5.0)),
        make_episode(episode=1, clock=clock(5.0, 4, 7.0)),
        make_episode(episode=2, clock=clock(11.0, 10, None), success=False),
        make_episode(episode=3, clock=clock(99.0, 99, 99.0), error_type="RuntimeError"),
    )
    run = Run({**run_json, "config": {"clock": {"name": "async", **config}}}, episodes, ())
    summary = summarise(run).clock
    assert summary is not None
    assert (summary.mode, summary.speed, summary.latency) == ("async", 2.0, says)
    assert (summary.robot_s, summary.held_steps, summary.age, summary.seam) == (4.0, 6.0, 6.0, 0.25)
    assert summary.latency_mean_ms == (200.0 if config.get("latency_ms") == 200 else 204.0)
    assert summary.guidance is None
    assert summary.reproducible is reproducible
    text = StringIO()
    Console(file=text, width=400).print(render(summarise(run)))
    assert f"clock: async, latency {says}, speed 2, d = 4.0 | robot time to success: 4.0 s" in text.getvalue()
    assert ("not reproducible" in text.getvalue()) is not reproducible


def test_a_guided_clock_and_what_older_records_were_charged_are_named(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    clock = ClockRecord("rtc", 1.0, 3.0, 4, 4.0, 4, 6.0, 9, 0.25, 1.0)
    config = {"clock": {"name": "rtc", "latency_ms": 184, "beta": 2.5, "jacobian": "exact"}}
    run = Run({**run_json, "config": config}, (make_episode(clock=clock),), ())
    summary = summarise(run).clock
    assert summary is not None
    assert (summary.guidance, summary.latency_mean_ms) == ("beta 2.5, exact", 184.0)
    text = StringIO()
    Console(file=text, width=400).print(render(summarise(run)))
    assert "clock: rtc, latency 184 ms, d = 4.0 | guided: beta 2.5, exact" in text.getvalue()
    config = {"clock": {"name": "rtc"}}
    untold = summarise(Run({**run_json, "config": config}, (make_episode(clock=clock),), ()))
    assert untold.clock is not None
    assert (untold.clock.latency_mean_ms, untold.clock.guidance) == (None, None)


def test_a_run_whose_time_stood_still_has_no_clock(make_episode: Episode, run_json: dict[str, Any]) -> None:
    assert summarise(Run(run_json, (make_episode(),), ())).clock is None
