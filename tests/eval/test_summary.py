"""Summary: what a reader of the printed text sees."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.analysis.summary import summarise
from eval.records.reader import Run, read_run
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RunWriter
from eval.render.summary import render, verdict
from eval.summary import main
from policies.files import ROOT
from policies.text import shell_command
from tests.eval import written_runs

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]
WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(
    tmp_path: Path, make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> WriteRun:
    """Write a run of 10 tasks x 10 episodes with 97 successes and some more episodes; return its folder."""

    def write(more: tuple[EpisodeRecord, ...] = (), **changes: Any) -> Path:
        folder = tmp_path / "run"
        with RunWriter(folder) as writer:
            writer.write_run({**run_json, "planned_episodes": 100 + len(more), **changes})
            for i in range(100):
                key = {"task_id": i // 10, "episode": i % 10}
                for call in range(2):
                    writer.add_inference(
                        make_inference(**key, call=call, warmup=i == 0, infer_ms=20.0 + i / 8)
                    )
                writer.add_episode(make_episode(**key, inferences=2, success=i not in (3, 44, 45)))
            for record in more:
                writer.add_episode(record)
        return folder

    return write


def show(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(folder)]) == 0
    return capsys.readouterr().out


def squeezed(text: str) -> list[str]:
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]


def test_rates_intervals_latencies_and_engagement_are_shown_with_n(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    text = show(write_run(), capsys)
    lines = squeezed(text)
    assert "Success (n = 100 episodes of 100 planned)" in lines
    assert "libero_spatial 97 / 100 97.0% 91.5 to 99.0 % 0" in lines
    assert any(line.startswith("4 ") and " 8 / 10 80.0% " in line for line in lines)
    assert "Latency (2 warm-up inferences left out)" in lines
    assert "n p50 ms p95 ms p99 ms mean ms Hz (mean)" in lines
    assert "host to host 198 26.25 31.77 32.25 26.25 38.1" in lines
    assert "vision 198 4.25 4.25 4.25 4.25 235.3" in lines
    assert "denoise cuda_graph 12 0 0" in lines
    assert "warning" not in text


def test_one_of_a_thing_is_singular(make_episode: Episode, make_inference: Inference) -> None:
    run = Run({"planned_episodes": 1}, (make_episode(inferences=1),), (make_inference(warmup=True),))
    console = Console(file=io.StringIO(), width=100)
    console.print(render(summarise(run)))
    text = console.file.getvalue()
    assert "(n = 1 episode of 1 planned)" in text
    assert "1 warm-up inference left out" in text


def test_the_provenance_line_names_what_was_run(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(show(write_run(), capsys).split())
    assert (
        "policy: full_optimized | checkpoint: pi05_libero (sha256 cccccccccccc) | "
        "seeding: paired | GL: egl | commit: 0123456789ab | "
        "setting: NVIDIA H200 bfloat16, lean form, 10 denoise steps, replan 5"
    ) in text


def test_a_stage_on_another_backend_than_the_policys_own_is_named_beside_the_policy(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"optim": {"vision": {"_target_": "optim.compile.Compile"}}}
    said = " ".join(show(write_run(config=config), capsys).split())
    assert "policy: full_optimized (vision compile) | checkpoint: " in said


def test_random_weights_are_said_first(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(write_run(weights_label="RANDOM WEIGHTS (small)"), capsys)
    assert text.splitlines()[0].strip() == "*** RANDOM WEIGHTS (small) ***"


def test_trained_weights_are_said_quietly(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(write_run(weights_label="/models/pi05_libero"), capsys)
    assert "***" not in text
    assert "weights: /models/pi05_libero" in " ".join(text.split())


def test_errors_are_shown_apart_with_type_and_message(
    write_run: WriteRun, make_episode: Episode, capsys: pytest.CaptureFixture[str]
) -> None:
    error = make_episode(
        task_id=1, episode=10, error_type="RuntimeError", error_message="lost [red]context[/red]"
    )
    lines = squeezed(show(write_run((error,)), capsys))
    assert "libero_spatial 97 / 100 97.0% 91.5 to 99.0 % 1" in lines
    assert "Errors (n = 1, and 0 replaced by a retry)" in lines
    assert "libero_spatial-task1-episode10-seed7 RuntimeError lost [red]context[/red]" in lines


def test_misses_and_missing_episodes_are_warnings(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    engagement = {"vision": {"backend": "tensorrt_fp8", "calls": 0, "misses": 2}}
    lines = squeezed(show(write_run(engagement=engagement, planned_episodes=500), capsys))
    assert "Success (n = 100 episodes of 500 planned)" in lines
    assert "warning: 100 of 500 planned episodes are recorded" in lines
    assert "warning: vision: tensorrt_fp8 never engaged" in lines
    assert "warning: vision: 2 calls missed tensorrt_fp8" in lines


def test_json_is_strict_and_complete(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_run()), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert summary["total"]["successes"] == 97
    assert summary["infer"]["n"] == 198
    assert summary["engagement"][2] == {
        "stage": "denoise",
        "backend": "cuda_graph",
        "calls": 12,
        "misses": 0,
        "refused": 0,
    }


@pytest.mark.parametrize("name", ["", "nothing"])
def test_a_folder_without_records_is_one_line_and_exit_1(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / name)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "holds no records: episodes.jsonl is missing" in captured.err


def test_a_folder_that_holds_runs_says_which_and_how_to_see_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(12):
        RunWriter(tmp_path / "sweep of it" / f"{i}_baseline").close()
    assert main([str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    first = tmp_path / "sweep of it" / "0_baseline"
    assert line.startswith(
        f"error: {tmp_path} is no run, but holds 12 runs; see all of them with "
        f"`{shell_command('eval.report', str(tmp_path))}`, one with "
        f"`{shell_command('eval.summary', shlex.quote(str(first)))}`; "
        "in it: sweep of it/0_baseline, sweep of it/1_baseline, "
    )
    assert line.endswith("sweep of it/9_baseline and 2 more")


def test_a_run_without_episodes_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunWriter(tmp_path).close()
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == [f"error: {tmp_path}: the run holds no episode records"]


def test_a_pipe_gets_plain_text_that_is_wide_enough(write_run: WriteRun) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")
    }
    done = subprocess.run(
        [sys.executable, "-m", "eval.summary", str(write_run(weights_label="RANDOM WEIGHTS"))],
        cwd=ROOT,
        env={**environment, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stdout
    lines = [line.rstrip() for line in done.stdout.splitlines() if " -m eval." not in line]
    assert 80 < max(map(len, lines)) <= 100
    assert not any("…" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_pipe_obeys_columns_but_for_commands(write_run: WriteRun, columns: int) -> None:
    folder = write_run()
    done = subprocess.run(
        [sys.executable, "-m", "eval.summary", str(folder)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(columns), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if str(folder) not in line) <= columns
    assert sum(str(folder) in line for line in lines) >= 3


INSTRUCTIONS = (
    *("between the plate and the ramekin", "next to the ramekin", "from table center", "on the cookie box"),
    *("in the top drawer of the wooden cabinet", "on the ramekin", "next to the cookie box", "on the stove"),
    *("next to the plate", "on the wooden cabinet"),
)


def test_ten_tasks_are_twenty_lines_of_eighty_columns_that_end_with_the_total_and_the_verdict(
    make_episode: Episode, run_json: dict[str, Any]
) -> None:
    episodes = [
        make_episode(
            task_id=task,
            episode=number,
            instruction=f"pick up the black bowl {words} and place it on the plate",
            success=task != 3,
        )
        for task, words in enumerate(INSTRUCTIONS)
        for number in range(50)
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(summarise(Run({**run_json, "planned_episodes": 500}, tuple(episodes), ()))))
    lines = [line.rstrip() for line in console.export_text().rstrip().splitlines()]
    begin = lines.index("Success (n = 500 episodes of 500 planned)")
    table = lines[begin:]
    assert len(table) <= 20
    assert max(map(len, table)) <= 80
    assert squeezed("\n".join(table))[7] == "3 on the cookie box 0 / 50 0.0% 0.0 to 7.1 % 0"
    assert squeezed("\n".join(table))[8].startswith("4 in the top")
    assert squeezed(table[-3])[0] == "libero_spatial 450 / 500 90.0% 87.1 to 92.3 % 0"
    assert table[-1] == "Result: 450 of 500 episodes succeeded (90.0%; 95 % interval 87.1 to 92.3 %)"


def test_the_verdict_says_why_a_run_is_no_result(write_run: WriteRun) -> None:
    run = read_run(write_run())

    def said(**changes: Any) -> str:
        return verdict(summarise(replace(run, run={**run.run, **changes})))

    counted = "97 of 100 episodes succeeded (97.0%; 95 % interval 91.5 to 99.0 %)"
    assert said() == f"Result: {counted}; 26.2 ms from observation to action (median, n = 198)"
    assert said(planned_episodes=500) == f"Not finished, 400 episodes left: {counted}"
    stop = {"decision": "non-inferior", "margin": 2.0, "pairs": 100, "planned": 500}
    ended = said(planned_episodes=500, stop=stop)
    assert ended.startswith(f"Result: {counted}; ended by the test against its base: non-inferior; ")
    label = "RANDOM WEIGHTS (small)"
    assert said(weights_label=label) == f"No result: {label}; {counted}"
    idle = {"vision": {"backend": "tensorrt_fp8", "calls": 0, "misses": 0}}
    assert said(engagement=idle) == (
        f"No result of these backends, of which vision did not serve every call: {counted}"
    )


@pytest.mark.parametrize(("episodes", "shown"), [(4, False), (5, True)])
def test_the_verdict_has_no_latency_of_fewer_than_five_quiet_episodes(
    episodes: int, shown: bool, make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    run = Run(
        {**run_json, "planned_episodes": episodes},
        tuple(make_episode(episode=i, inferences=1) for i in range(episodes)),
        tuple(make_inference(episode=i) for i in range(episodes)),
    )
    assert ("20.5 ms from observation to action (median, n = 5)" in verdict(summarise(run))) is shown


def test_percentiles_need_enough_inferences(
    make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    def row(n: int) -> list[str]:
        inferences = tuple(make_inference(call=i, infer_ms=20.0 + i / 100) for i in range(n))
        run = Run({**run_json, "planned_episodes": 1}, (make_episode(inferences=n),), inferences)
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(render(summarise(run)))
        [line] = [line for line in squeezed(console.export_text()) if line.startswith("host to host")]
        return line.removeprefix("host to host ").split()

    assert row(5) == ["5", "20.02", "-", "-", "20.02", "50.0"]
    assert row(20)[2:4] == ["20.18", "-"]
    assert "-" not in row(100)


def test_three_commands_come_last_and_a_shell_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(name: str, policy: str) -> Path:
        config = {"config": {"policy": {"name": policy}}}
        return written_runs.write_run(tmp_path / "my runs" / name, policy=policy, count=9, run=config)

    base, new = written("1_base", "baseline"), written("2_new", "fast")
    assert [shlex.split(line)[-3:] for line in show(new, capsys).splitlines()[-3:]] == [
        ["eval.compare", str(base), str(new)],
        ["-m", "eval.report", str(new)],
        ["eval.summary", str(new), "--json"],
    ]
    first = show(base, capsys).splitlines()[-3:]
    assert "eval.compare" not in "".join(first)
    assert len(first) == 3
    change = json.loads((new / "run.json").read_text()) | {"planned_episodes": 900}
    (new / "run.json").write_text(json.dumps(change))
    assert shlex.split(show(new, capsys).splitlines()[-3])[-2:] == ["eval", f"resume='{new}'"]
    change["overrides"] = ["policy=custom", "policy._target_=mine.Policy", "policy.url=ws://host:1", "seed=3"]
    (new / "run.json").write_text(json.dumps(change))
    again = shlex.split(show(new, capsys).splitlines()[-3])
    assert again[-3:] == [f"resume='{new}'", "policy._target_=...", "policy.url=..."]


def test_several_suites_get_a_pooled_line(make_episode: Episode, run_json: dict[str, Any]) -> None:
    episodes = (make_episode(), make_episode(suite="libero_10", success=False))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(summarise(Run({**run_json, "planned_episodes": 2}, episodes, ()))))
    lines = squeezed(console.export_text())
    assert "all suites, pooled 1 / 2 50.0% 9.5 to 90.5 % 0" in lines
    assert "Latency: n = 0 inferences, 0 warm-up inferences left out" in lines
