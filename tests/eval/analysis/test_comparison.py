"""Comparison of two runs: what is paired, what each limit decides, and what is warned of or refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.analysis.comparable import NotComparable
from eval.analysis.comparison import Comparison, compare
from eval.analysis.statistics import PairedCounts
from eval.records.reader import Run, read_run
from eval.records.schema import EpisodeRecord, InferenceRecord

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]
WriteRun = Callable[..., Path]


def compared(base: Path, new: Path, margin: float = 2.0) -> Comparison:
    return compare(read_run(base), read_run(new), margin)


def test_two_hundred_successes_twice_are_non_inferior(write_run: WriteRun) -> None:
    result = compared(write_run("base"), write_run("new", infer_ms=10.0))
    assert (result.verdict, result.passed) == ("non-inferior", True)
    assert result.counts == PairedCounts(both=200, lost=0, won=0, neither=0)
    assert result.newcombe.low == pytest.approx(-0.0188, abs=5e-5)
    assert result.by_task is None
    assert result.mcnemar_p == 1.0
    assert result.latency["host to host"].ratio == pytest.approx(2.0)
    assert list(result.latency) == ["vision", "prefix", "denoise", "around the stages", "host to host"]
    assert result.warnings == ()


def test_a_hundred_successes_twice_show_nothing_at_two_points(write_run: WriteRun) -> None:
    base, new = write_run("base", count=100), write_run("new", count=100)
    result = compared(base, new)
    assert result.verdict == "not shown"
    assert result.newcombe.low == pytest.approx(-0.0370, abs=5e-5)
    assert result.episodes_needed == 189
    assert compared(base, new, margin=4).verdict == "non-inferior"


def test_a_limit_exactly_on_the_margin_is_not_shown(write_run: WriteRun) -> None:
    base, new = write_run("base"), write_run("new", failures=[3])
    result = compared(base, new)
    assert result.by_task is not None
    exact = -min(result.newcombe.low, result.by_task.low) * 100
    assert not compared(base, new, exact).passed
    assert compared(base, new, exact + 1e-9).passed


def test_a_damaged_policy_is_inferior(write_run: WriteRun) -> None:
    result = compared(write_run("base", failures=[7]), write_run("new", failures=[7, *range(20, 60)]))
    assert (result.verdict, result.passed) == ("inferior", False)
    assert result.counts == PairedCounts(both=159, lost=40, won=0, neither=1)
    assert result.difference == -0.2
    assert result.mcnemar_p < 1e-11
    assert result.lost[0] == "libero_spatial-task0-episode2-seed7"
    assert len(result.lost) == 40


def test_a_better_policy_passes_though_all_its_gains_are_in_one_task(write_run: WriteRun) -> None:
    result = compared(write_run("base", failures=range(4, 104, 10)), write_run("new"))
    assert (result.verdict, result.passed, len(result.won)) == ("non-inferior", True, 10)


def test_harm_to_one_task_is_not_hidden_by_gains_in_another(write_run: WriteRun) -> None:
    result = compared(
        write_run("base", count=500, failures=range(4, 104, 10)),
        write_run("new", count=500, failures=range(5, 105, 10)),
    )
    assert result.difference == 0.0
    assert result.newcombe.low > -0.02
    assert result.by_task is not None
    assert result.by_task.low < -0.02
    assert result.verdict == "not shown"


@pytest.mark.parametrize("side", ["base", "new"])
@pytest.mark.parametrize(
    ("engagement", "problem"),
    [
        ({"backend": "cuda_graph", "calls": 199, "misses": 1}, "denoise: 1 calls missed cuda_graph"),
        ({"backend": "cuda_graph", "calls": 0, "misses": 0}, "denoise: cuda_graph never engaged"),
        (
            {"backend": "compile", "calls": 200, "misses": 0},
            "denoise: inferences were served by ['cuda_graph'] besides compile",
        ),
        (None, "denoise: run.json does not say who served it"),
    ],
)
def test_a_fallback_or_an_idle_backend_never_passes(
    write_run: WriteRun,
    run_json: dict[str, Any],
    side: str,
    engagement: dict[str, Any] | None,
    problem: str,
) -> None:
    reported = {**run_json["engagement"], "denoise": engagement}
    if engagement is None:
        del reported["denoise"]
    base, new = (
        write_run(name, run={"engagement": reported} if name == side else None) for name in ("base", "new")
    )
    result = compared(base, new)
    assert (result.verdict, result.engaged, result.passed) == ("non-inferior", False, False)
    assert result.sides[side.upper()].problems == (problem,)
    assert not any(problem in warning for warning in result.warnings)


def test_a_run_that_never_said_whether_it_engaged_does_not_pass(write_run: WriteRun) -> None:
    base, new = write_run("base"), write_run("new")
    (new / "run.json").unlink()
    result = compared(base, new)
    assert not result.passed
    assert "run.json is missing, which says whether backends engaged" in result.new.problems


def test_policies_without_stages_have_nothing_to_engage(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    episodes = tuple(
        make_episode(task_id=i % 10, episode=i // 10, checkpoint=None, checkpoint_sha256=None)
        for i in range(200)
    )
    oracle = Run({**run_json, "engagement": {}, "policy": {}}, episodes, ())
    assert compare(oracle, oracle, 2.0).passed


def test_runs_of_different_clocks_are_paired_and_what_differs_is_said(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    episodes = tuple(make_episode(episode=i) for i in range(3))
    free = Run(run_json, episodes, ())
    clock = {"name": "async", "latency_ms": 200, "speed": 2.0}
    on_a_clock = Run({**run_json, "config": {**run_json.get("config", {}), "clock": clock}}, episodes, ())
    result = compare(free, on_a_clock, 2.0)
    assert result.counts.n == 3
    said = {"clock differs: free and async", "clock.latency_ms differs: unknown and 200"}
    assert said < set(result.warnings)
    assert not [warning for warning in compare(on_a_clock, on_a_clock, 2.0).warnings if "clock" in warning]


def test_code_differs_by_its_trees_and_by_its_commit_only_in_older_records(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    def run(commit: str, trees: dict[str, str] | None) -> Run:
        origin = {"git": {"commit": commit, "dirty": False, "error": None}, "trees": trees}
        return Run({**run_json, "provenance": origin}, (make_episode(),), ())

    def said(base: Run, new: Run) -> list[str]:
        warnings = compare(base, new, 2.0).warnings
        return [warning for warning in warnings if warning.startswith(("code", "commit"))]

    trees = {
        name: digit * 40 for name, digit in zip(("conf", "eval", "optim", "policies"), "abcd", strict=True)
    }
    assert said(run("1", trees), run("2", trees)) == []  # the commits differ in documents
    other = said(run("1", trees), run("1", {**trees, "optim": "e" * 40}))
    assert other == [f"code of optim/ differs: {'c' * 40} and {'e' * 40}"]
    assert said(run("1", None), run("2", trees)) == ["commit differs: 1 and 2"]


def test_errors_are_in_no_pair_and_do_not_decide(write_run: WriteRun) -> None:
    result = compared(write_run("base", errors=[11]), write_run("new", errors=[12, 13, 14]))
    assert (result.base.errors, result.new.errors, result.left_out.raised) == (1, 3, 4)
    assert result.counts.n == 196
    assert result.newcombe.low > -0.02  # the pairs alone would show it
    assert result.if_errors_count is not None
    assert result.if_errors_count.low < -0.02  # NEW's errors as failures would not
    assert result.verdict == "not shown"


def test_one_error_among_many_episodes_does_not_refuse_the_verdict(write_run: WriteRun) -> None:
    result = compared(write_run("base", count=500), write_run("new", count=500, errors=[12]))
    assert (result.passed, result.left_out.raised) == (True, 1)


def test_only_common_episodes_count(write_run: WriteRun) -> None:
    result = compared(write_run("base", count=300), write_run("new", count=220, first=90, failures=[295]))
    assert (result.left_out.base_alone, result.left_out.new_alone, result.left_out.raised) == (90, 10, 0)
    assert result.counts.both == 209
    assert result.lost == ("libero_spatial-task5-episode29-seed7",)
    assert result.latency["vision"].episodes == 210


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeding": "openpi"}, "seeding of the two runs must be the same, got paired and openpi"),
        ({"checkpoint_sha256": "d" * 64}, "checkpoint_sha256 of the two runs must be the same"),
        ({"weights_label": "RANDOM WEIGHTS (small)"}, "NEW has RANDOM WEIGHTS (small)"),
        ({"run": {"weights_label": "RANDOM WEIGHTS (full)"}}, "NEW has RANDOM WEIGHTS (full)"),
        (
            {"run": {"config": {"suite": {"max_steps": 100}}}},
            "suite.max_steps of the two runs must be the same",
        ),
        (
            {"run": {"policy": {"norm_stats_sha256": "e"}}},
            "norm_stats_sha256 of the two runs must be the same",
        ),
        ({"errors": range(200)}, "no episode was finished by both runs: of 200 in both, each raised"),
    ],
)
def test_runs_whose_difference_means_nothing_are_refused(
    write_run: WriteRun, changes: dict[str, Any], reason: str
) -> None:
    known = {"config": {"suite": {"max_steps": 220}}, "policy": {"norm_stats_sha256": "f"}}
    base, new = write_run("base", run=known), write_run("new", **changes)
    with pytest.raises(NotComparable, match=re.escape(reason)):
        compared(base, new)


@pytest.mark.parametrize(
    ("old", "changed", "reason"),
    [
        ('"libero_spatial"', '"libero_10"', "suites of the two runs must be the same"),
        (
            '"seed": 7',
            '"seed": 8',
            "no episode is in both runs (2 from libero_spatial-task0-episode0-seed7; ",
        ),
    ],
)
def test_runs_of_other_episodes_are_refused(write_run: WriteRun, old: str, changed: str, reason: str) -> None:
    base, new = write_run("base", count=2), write_run("new", count=2)
    for file in new.iterdir():
        file.write_text(file.read_text().replace(old, changed))
    with pytest.raises(NotComparable, match=re.escape(reason)):
        compared(base, new)


def test_what_differs_besides_the_policy_is_warned_of(write_run: WriteRun, run_json: dict[str, Any]) -> None:
    provenance = {
        **run_json["provenance"],
        "packages": {"torch": "2.11.0", "mujoco": "3.2.3"},
        "python": "3.11.7",
    }
    base = write_run("base", run={"provenance": provenance, "first_frame_sha256": "f" * 64})
    others = {
        "provenance": {**provenance, "packages": {"torch": "2.13.0", "mujoco": "3.2.3"}},
        "gl_backend": "osmesa",
        "first_frame_sha256": "0" * 64,
        "policy": {**run_json["policy"], "device": "cpu", "replan_steps": 10, "denoise_steps": 3},
    }
    new = write_run("new", run=others, initial_state_sha256="1" * 64)
    assert compared(base, new).warnings == (
        "200 of 200 pairs did not start from the same simulator state",
        "the first camera image differs: renderer, versions or settle steps do",
        "GL backend differs: egl and osmesa",
        "device differs: NVIDIA H200 and cpu",
        "replan steps differs: 5 and 10",
        "torch differs: 2.11.0 and 2.13.0",
    )


def test_a_run_that_stopped_early_and_one_task_alone_are_warned_of(write_run: WriteRun) -> None:
    base = write_run("base", tasks=1, count=30)
    new = write_run("new", tasks=1, count=20, run={"planned_episodes": 30, "finished": False})
    warnings = compared(base, new).warnings
    assert "NEW: run.json says that the run did not finish" in warnings
    assert "NEW: 20 of 30 planned episodes are recorded" in warnings
    assert "all pairs are of one task: nothing is known of others" in warnings


def test_messages_call_the_runs_by_the_names_that_were_given(write_run: WriteRun) -> None:
    names = ("the first run", "this run")
    base, new = read_run(write_run("base", quiet=3)), read_run(write_run("NEW", quiet=1))
    *_, loaded, few = compare(base, new, 2.0, names).warnings
    assert loaded == "this run: others ran beside 199 of 200 inferences, whose times are left out"
    assert "of 1 episode (the first run has latencies of 3, this run of 1)" in few
    label = "RANDOM WEIGHTS (of NEW)"
    random = replace(new, run={**new.run, "weights_label": label})
    with pytest.raises(NotComparable, match=f"^this run has {re.escape(label)}, whose success means nothing"):
        compare(base, random, 2.0, names)


def test_latencies_under_load_are_left_out(
    make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    episodes = tuple(make_episode(episode=i, inferences=2) for i in range(4))
    times = [(20.0, False), (500.0, True)]
    inferences = tuple(
        make_inference(episode=i, call=call, infer_ms=ms, under_load=loaded)
        for i in range(4)
        for call, (ms, loaded) in enumerate(times)
    )
    run = Run({**run_json, "planned_episodes": 4}, episodes, inferences)
    result = compare(run, run, 2.0)
    assert (result.latency["host to host"].base_p50, result.latency["host to host"].base_n) == (20.0, 4)
    assert "NEW: others ran beside 4 of 8 inferences, whose times are left out" in result.warnings


@pytest.mark.parametrize(
    ("base_quiet", "new_quiet", "shared"), [(1, 3, "1 episode"), (4, 4, "4 episodes"), (7, 2, "2 episodes")]
)
def test_latencies_of_few_episodes_are_warned_of_with_the_way_out(
    write_run: WriteRun, base_quiet: int, new_quiet: int, shared: str
) -> None:
    result = compared(write_run("base", quiet=base_quiet), write_run("new", quiet=new_quiet))
    [warning] = [warning for warning in result.warnings if warning.startswith("latency ratios")]
    assert f"of {shared} (BASE has latencies of {base_quiet}, NEW of {new_quiet})" in warning
    assert "runner.quiet_episodes=N with runner=ray, or more episodes" in warning


def test_one_episode_gives_a_ratio_without_an_interval(write_run: WriteRun) -> None:
    result = compared(write_run("base", quiet=1), write_run("new", quiet=1, infer_ms=10.0))
    ratios = {name: (ratio.ratio, ratio.interval) for name, ratio in result.latency.items()}
    assert ratios == dict.fromkeys(
        ("vision", "prefix", "denoise", "around the stages", "host to host"), (2.0, None)
    )
    assert not result.ratios_hold
    assert "which gives no interval" in result.warnings[-1]


def test_latencies_of_five_episodes_are_not_warned_of(write_run: WriteRun) -> None:
    result = compared(write_run("base", quiet=5), write_run("new", quiet=5))
    assert result.latency["host to host"].interval is not None
    assert not any("latency ratios" in warning for warning in result.warnings)


def test_more_steps_are_shown_where_success_cannot_show_harm(write_run: WriteRun) -> None:
    result = compared(write_run("base", steps=100), write_run("new", steps=112))
    assert result.more_steps == 12.0
    assert result.more_steps_by_task is not None
    assert (result.more_steps_by_task.low, result.more_steps_by_task.high) == (12.0, 12.0)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_swapped_runs_say_the_opposite_and_order_does_not_matter(
    data: st.DataObject, make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    runs = []
    for _ in range(2):
        keys = data.draw(
            st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=15, unique=True)
        )
        episodes, inferences = [], []
        for task_id, episode in keys:
            key = {"task_id": task_id, "episode": episode}
            outcomes: list[dict[str, Any]] = [
                {"success": True},
                {"success": False},
                {"error_type": "OSError"},
            ]
            outcome = data.draw(st.sampled_from(outcomes))
            episodes.append(
                make_episode(**key, **outcome, inferences=1, steps=data.draw(st.integers(1, 220)))
            )
            inferences.append(make_inference(**key, infer_ms=data.draw(st.floats(1, 100))))
        runs.append(Run({**run_json, "planned_episodes": len(keys)}, tuple(episodes), tuple(inferences)))
    base, new = runs
    try:
        result = compare(base, new, 2.0)
    except NotComparable as error:
        with pytest.raises(NotComparable, match=re.escape(str(error).partition("(")[0])):
            compare(new, base, 2.0)
        return
    shuffled = replace(
        base,
        episodes=tuple(data.draw(st.permutations(base.episodes))),
        inferences=tuple(data.draw(st.permutations(base.inferences))),
    )
    assert compare(shuffled, new, 2.0) == result
    other = compare(new, base, 2.0)
    assert (other.lost, other.won) == (result.won, result.lost)
    assert other.difference == -result.difference
    assert other.mcnemar_p == result.mcnemar_p
    assert other.newcombe.low == pytest.approx(-result.newcombe.high)
    assert other.left_out.raised == result.left_out.raised
    assert other.latency["host to host"].ratio == pytest.approx(1 / result.latency["host to host"].ratio)
    assert result.newcombe.low <= result.difference <= result.newcombe.high
    if result.by_task is not None:
        assert other.by_task is not None
        assert other.by_task.low == pytest.approx(-result.by_task.high, abs=1e-12)
    assert not (result.verdict == "non-inferior" and other.verdict == "inferior" and result.difference < 0)


def test_runs_of_two_benchmarks_say_so(write_run: WriteRun) -> None:
    hashes = {"init_states_sha256": "a" * 64, "assets_sha256": "c" * 64}
    base = write_run("base", run={"simulator": hashes})
    new = write_run("new", run={"simulator": hashes | {"init_states_sha256": "b" * 64}})
    said = "the benchmark differs: initial states have the hashes aaaaaaaaaaaa and bbbbbbbbbbbb"
    assert compared(base, new).warnings == (said,)
    assert compared(base, write_run("old")).warnings == ()
