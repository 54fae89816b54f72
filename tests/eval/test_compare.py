"""Comparison of two runs: exit codes on run folders, what is paired, and what a reader sees."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.analysis.comparable import NotComparable
from eval.analysis.comparison import compare
from eval.compare import main
from eval.records.reader import Run
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RunWriter

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]
WriteRun = Callable[..., Path]

TASKS = 10
SERVED = {"backend": "eager", "calls": 400, "misses": 0}


@pytest.fixture
def write_run(
    tmp_path: Path,
    make_episode: Episode,
    make_inference: Inference,
    run_json: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> WriteRun:
    """Write a run of `count` episodes over ten tasks, all or the first `quiet` alone; return its folder."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no power is lost here

    def write(
        name: str,
        *,
        failures: Iterable[int] = (),
        errors: Iterable[int] = (),
        count: int = 200,
        first: int = 0,
        infer_ms: float = 20.0,
        tasks: int = TASKS,
        quiet: int | None = None,
        run: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        with RunWriter(folder) as writer:
            writer.write_run({**run_json, "planned_episodes": count, **(run or {})})
            for i in range(first, first + count):
                key = {"task_id": i % tasks, "episode": i // tasks}
                stage_ms = {"vision": infer_ms / 4, "prefix": infer_ms / 4, "denoise": infer_ms / 3}
                jitter = 1 + (i % 7) / 100
                writer.add_inference(
                    make_inference(
                        **key,
                        infer_ms=infer_ms * jitter,
                        stage_ms=stage_ms,
                        under_load=quiet is not None and i >= first + quiet,
                    )
                )
                outcome: dict[str, Any] = {"success": i not in set(failures)}
                if i in set(errors):
                    outcome = {"error_type": "RuntimeError"}
                writer.add_episode(make_episode(**key, inferences=1, **(outcome | changes)))
        return folder

    return write


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Return the exit status and what --json printed."""
    status = main([*map(str, arguments), "--json"])
    printed = capsys.readouterr().out
    return status, json.loads(printed, parse_constant=pytest.fail) if printed else {}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return str(line)


def test_two_hundred_successes_twice_are_non_inferior(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = outcome(capsys, write_run("base"), write_run("new", infer_ms=10.0))
    assert (status, found["verdict"], found["passed"]) == (0, "non-inferior", True)
    assert found["counts"] == {"both": 200, "lost": 0, "won": 0, "neither": 0}
    assert found["newcombe"]["low"] == pytest.approx(-0.0188, abs=5e-5)
    assert found["by_task"] is None
    assert found["mcnemar_p"] == 1.0
    assert found["latency"]["host to host"]["ratio"] == pytest.approx(2.0)
    assert list(found["latency"]) == ["vision", "prefix", "denoise", "host to host"]
    assert found["warnings"] == []


def test_a_hundred_successes_twice_show_nothing_at_two_points(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", count=100), write_run("new", count=100)
    status, found = outcome(capsys, base, new)
    assert (status, found["verdict"]) == (1, "not shown")
    assert found["newcombe"]["low"] == pytest.approx(-0.0370, abs=5e-5)
    assert found["episodes_needed"] == 189
    status, found = outcome(capsys, base, new, "--margin", "4")
    assert (status, found["verdict"]) == (0, "non-inferior")


def test_a_limit_exactly_on_the_margin_is_not_shown(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base"), write_run("new", failures=[3])
    _, found = outcome(capsys, base, new)
    low = min(found["newcombe"]["low"], found["by_task"]["low"])
    exact = -low * 100
    assert outcome(capsys, base, new, "--margin", repr(exact))[0] == 1
    assert outcome(capsys, base, new, "--margin", repr(exact + 1e-9))[0] == 0


def test_a_damaged_policy_is_inferior(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = write_run("base", failures=[7]), write_run("new", failures=[7, *range(20, 60)])
    status, found = outcome(capsys, base, new)
    assert (status, found["verdict"]) == (1, "inferior")
    assert found["counts"] == {"both": 159, "lost": 40, "won": 0, "neither": 1}
    assert found["difference"] == -0.2
    assert found["mcnemar_p"] < 1e-11
    assert found["lost"][0] == "libero_spatial-task0-episode2-seed7"
    assert len(found["lost"]) == 40
    assert main([str(base), str(new)]) == 1
    assert "INFERIOR: NEW loses more than 2 points of success" in capsys.readouterr().out


def test_a_better_policy_passes_though_all_its_gains_are_in_one_task(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", failures=range(4, 104, 10)), write_run("new")
    status, found = outcome(capsys, base, new)
    assert (status, found["verdict"]) == (0, "non-inferior")
    assert len(found["won"]) == 10


def test_harm_to_one_task_is_not_hidden_by_gains_in_another(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_run("base", count=500, failures=range(4, 104, 10))
    new = write_run("new", count=500, failures=range(5, 105, 10))
    status, found = outcome(capsys, base, new)
    assert found["difference"] == 0.0
    assert found["newcombe"]["low"] > -0.02
    assert found["by_task"]["low"] < -0.02
    assert (status, found["verdict"]) == (1, "not shown")


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
    capsys: pytest.CaptureFixture[str],
    side: str,
    engagement: dict[str, Any] | None,
    problem: str,
) -> None:
    reported = {**run_json["engagement"], "denoise": engagement}
    if engagement is None:
        del reported["denoise"]
    folders = [
        write_run(name, run={"engagement": reported} if name == side else None) for name in ("base", "new")
    ]
    status, found = outcome(capsys, *folders)
    assert (status, found["verdict"], found["engaged"]) == (1, "non-inferior", False)
    assert found[side]["problems"] == [problem]
    assert not any(problem in warning for warning in found["warnings"])
    assert main([str(folder) for folder in folders]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert f"error: {side.upper()}: {problem}" in text
    assert "NOT ENGAGED" in text


def test_a_run_that_never_said_whether_it_engaged_does_not_pass(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base"), write_run("new")
    (new / "run.json").unlink()
    status, found = outcome(capsys, base, new)
    assert status == 1
    assert "run.json is missing, which says whether backends engaged" in found["new"]["problems"]


def test_policies_without_stages_have_nothing_to_engage(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    episodes = tuple(
        make_episode(task_id=i % 10, episode=i // 10, checkpoint=None, checkpoint_sha256=None)
        for i in range(200)
    )
    oracle = Run({**run_json, "engagement": {}, "policy": {}}, episodes, ())
    assert compare(oracle, oracle, 2.0).passed


def test_errors_are_in_no_pair_and_do_not_decide(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", errors=[11]), write_run("new", errors=[12, 13, 14])
    status, found = outcome(capsys, base, new)
    assert (found["base"]["errors"], found["new"]["errors"], found["left_out"]["raised"]) == (1, 3, 4)
    assert sum(found["counts"].values()) == 196
    assert found["newcombe"]["low"] > -0.02  # the pairs alone would show it
    assert found["if_errors_count"]["low"] < -0.02  # NEW's errors as failures would not
    assert (status, found["verdict"]) == (1, "not shown")


def test_one_error_among_many_episodes_does_not_refuse_the_verdict(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = outcome(capsys, write_run("base", count=500), write_run("new", count=500, errors=[12]))
    assert (status, found["left_out"]["raised"]) == (0, 1)


def test_only_common_episodes_count_and_the_others_are_told(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", count=300), write_run("new", count=220, first=90, failures=[295])
    _, found = outcome(capsys, base, new)
    assert found["left_out"] == {"base_alone": 90, "new_alone": 10, "raised": 0}
    assert found["counts"]["both"] == 209
    assert found["lost"] == ["libero_spatial-task5-episode29-seed7"]
    assert found["latency"]["vision"]["episodes"] == 210
    main([str(base), str(new)])
    assert "pairs: 210; left out: 90 episodes of BASE alone, 10 of NEW alone" in capsys.readouterr().out


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
    write_run: WriteRun, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    known = {"config": {"suite": {"max_steps": 220}}, "policy": {"norm_stats_sha256": "f"}}
    assert reason in refusal(capsys, write_run("base", run=known), write_run("new", **changes))


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
def test_runs_of_other_episodes_are_refused(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str], old: str, changed: str, reason: str
) -> None:
    base, new = write_run("base", count=2), write_run("new", count=2)
    for file in new.iterdir():
        file.write_text(file.read_text().replace(old, changed))
    assert reason in refusal(capsys, base, new)


def test_folders_without_records_or_with_damaged_ones_are_refused(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_run("base", count=2)
    assert "holds no records" in refusal(capsys, base, tmp_path / "nowhere")
    RunWriter(tmp_path / "empty").close()
    assert "NEW: the run holds no episode records" in refusal(capsys, base, tmp_path / "empty")
    broken = write_run("broken", count=2)
    (broken / "episodes.jsonl").write_text("{}\n")
    assert "BASE: " in refusal(capsys, broken, base)


@pytest.mark.parametrize("margin", ["0", "-1", "100", "nan", "two"])
def test_a_margin_that_means_nothing_is_refused(margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["base", "new", f"--margin={margin}"])
    assert stop.value.code == 64
    assert "--margin" in capsys.readouterr().err


def test_a_wrong_command_line_and_runs_that_cannot_be_compared_have_statuses_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as wrong:
        main(["base"])
    assert (wrong.value.code, main([str(tmp_path), str(tmp_path)])) == (64, 2)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "2 when the runs cannot be read or compared, 64 when the command line is wrong" in said


def test_what_differs_besides_the_policy_is_warned_of(
    write_run: WriteRun, run_json: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
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
    _, found = outcome(capsys, base, new)
    assert found["warnings"] == [
        "200 of 200 pairs did not start from the same simulator state",
        "the first camera image differs: renderer, versions or settle steps do",
        "GL backend differs: egl and osmesa",
        "device differs: NVIDIA H200 and cpu",
        "replan steps differs: 5 and 10",
        "torch differs: 2.11.0 and 2.13.0",
    ]


def test_a_run_that_stopped_early_and_one_task_alone_are_warned_of(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_run("base", tasks=1, count=30)
    new = write_run("new", tasks=1, count=20, run={"planned_episodes": 30, "finished": False})
    _, found = outcome(capsys, base, new)
    assert "NEW: run.json says that the run did not finish" in found["warnings"]
    assert "NEW: 20 of 30 planned episodes are recorded" in found["warnings"]
    assert "all pairs are of one task: nothing is known of others" in found["warnings"]


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
    found = compare(run, run, 2.0)
    assert (found.latency["host to host"].base_p50, found.latency["host to host"].base_n) == (20.0, 4)
    assert "NEW: others ran beside 4 of 8 inferences, whose times are left out" in found.warnings


@pytest.mark.parametrize(
    ("base_quiet", "new_quiet", "shared"), [(1, 3, "1 episode"), (4, 4, "4 episodes"), (7, 2, "2 episodes")]
)
def test_latencies_of_few_episodes_are_warned_of_with_the_way_out(
    write_run: WriteRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    base_quiet: int,
    new_quiet: int,
    shared: str,
) -> None:
    base, new = write_run("base", quiet=base_quiet), write_run("new", quiet=new_quiet)
    report = tmp_path / "x.md"
    _, found = outcome(capsys, base, new, "--markdown", report)
    [warning] = [of for of in found["warnings"] if of.startswith("latency ratios")]
    assert f"of {shared} (BASE has latencies of {base_quiet}, NEW of {new_quiet})" in warning
    assert "runner.quiet_episodes=N with runner=ray, or more episodes" in warning
    assert f"- warning: {warning}\n" in report.read_text()
    main([str(base), str(new)])
    assert f"warning: {warning}" in " ".join(capsys.readouterr().out.split())


def test_one_episode_gives_a_ratio_without_an_interval(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", quiet=1), write_run("new", quiet=1, infer_ms=10.0)
    _, found = outcome(capsys, base, new)
    assert {name: (of["ratio"], of["interval"]) for name, of in found["latency"].items()} == dict.fromkeys(
        ("vision", "prefix", "denoise", "host to host"), (2.0, None)
    )
    assert "which gives no interval" in found["warnings"][-1]
    main([str(base), str(new)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "host to host 1 20.00 1 10.00 2.00x -" in lines


def test_latencies_of_five_episodes_are_not_warned_of(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = outcome(capsys, write_run("base", quiet=5), write_run("new", quiet=5))
    assert found["latency"]["host to host"]["interval"] is not None
    assert not any("latency ratios" in warning for warning in found["warnings"])


def test_more_steps_are_shown_where_success_cannot_show_harm(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = outcome(capsys, write_run("base", steps=100), write_run("new", steps=112))
    assert found["more_steps"] == 12.0
    assert found["more_steps_by_task"] == {"low": 12.0, "high": 12.0}


def test_the_markdown_and_the_text_say_the_same_numbers(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = write_run("base", failures=[1, 2]), write_run("new", failures=[2, 3], infer_ms=5.0)
    report = tmp_path / "reports" / "x.md"
    main([str(base), str(new), "--markdown", str(report)])
    text = re.sub(r"[ ]+", " ", capsys.readouterr().out)
    markdown = report.read_text()
    squeezed = re.sub(r"[ ]*\|[ ]*", " ", markdown)
    for row in (
        "NEW full_optimized 198 / 200 99.0% 96.4% to 99.7% 0",
        "paired, Newcombe -2.50 +2.50",
        "host to host 200 20.60 200 5.15 4.00x 4.00 to 4.00",
        "NEW denoise cuda_graph 12 0",
    ):
        assert row in text
        assert row in squeezed
    assert "lost: libero_spatial-task3-episode0-seed7" in text
    assert "- lost: libero_spatial-task3-episode0-seed7" in markdown
    assert "- won: libero_spatial-task1-episode0-seed7" in markdown
    assert "NOT SHOWN: NEW may lose 2 points of success or more" in markdown
    assert markdown.count("```") == 2


def test_the_picture_shows_interval_margin_and_zero_in_their_places(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(write_run("base")), str(write_run("new", failures=range(20)))])
    lines = capsys.readouterr().out.splitlines()
    label = len("paired, Newcombe")
    [axis] = [line[label:] for line in lines if line.startswith("points")]
    [row] = [line[label:] for line in lines if line.startswith("paired, Newcombe") and "[" in line]
    assert row.index("[") < row.index("o") < row.index("]") < row.index(":") < row.index("|")
    assert axis.index("-2") == pytest.approx(row.index(":"), abs=1)
    assert axis.index("0") == row.index("|")


def test_the_picture_of_a_wide_interval_keeps_its_marks_and_does_not_run_labels_together(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(write_run("base", count=2)), str(write_run("new", count=2))])
    lines = capsys.readouterr().out.splitlines()
    [axis] = [line for line in lines if line.startswith("points")]
    label = len("paired, Newcombe")
    [row] = [line[label:] for line in lines if line.startswith("paired, Newcombe") and "[" in line]
    assert axis.split() == ["points", "-2"]
    assert row.index("[") < row.index(":") < row.index("o") < row.index("]")


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
            result = data.draw(st.sampled_from(outcomes))
            episodes.append(make_episode(**key, **result, inferences=1, steps=data.draw(st.integers(1, 220))))
            inferences.append(make_inference(**key, infer_ms=data.draw(st.floats(1, 100))))
        runs.append(Run({**run_json, "planned_episodes": len(keys)}, tuple(episodes), tuple(inferences)))
    base, new = runs
    try:
        found = compare(base, new, 2.0)
    except NotComparable as error:
        with pytest.raises(NotComparable, match=re.escape(str(error).partition("(")[0])):
            compare(new, base, 2.0)
        return
    shuffled = replace(
        base,
        episodes=tuple(data.draw(st.permutations(base.episodes))),
        inferences=tuple(data.draw(st.permutations(base.inferences))),
    )
    assert compare(shuffled, new, 2.0) == found
    other = compare(new, base, 2.0)
    assert (other.lost, other.won) == (found.won, found.lost)
    assert other.difference == -found.difference
    assert other.mcnemar_p == found.mcnemar_p
    assert other.newcombe.low == pytest.approx(-found.newcombe.high)
    assert other.left_out.raised == found.left_out.raised
    assert other.latency["host to host"].ratio == pytest.approx(1 / found.latency["host to host"].ratio)
    assert found.newcombe.low <= found.difference <= found.newcombe.high
    if found.by_task is not None:
        assert other.by_task is not None
        assert other.by_task.low == pytest.approx(-found.by_task.high, abs=1e-12)
    assert not (found.verdict == "non-inferior" and other.verdict == "inferior" and found.difference < 0)
