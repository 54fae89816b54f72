"""Progress: plain lines without a terminal, a live display with one."""

import io
import re
import threading
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.render.console import report_console
from eval.runners.progress import Progress

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]


def ticking(step_s: float) -> Callable[[], float]:
    def ticks() -> Iterator[float]:
        now_s = 0.0
        while True:
            yield now_s
            now_s += step_s

    return ticks().__next__


def test_without_a_terminal_each_episode_is_one_plain_line(
    make_episode: Episode, make_inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    out = io.StringIO()
    with Progress(10, Console(file=out, width=40), clock_s=ticking(30.0)) as progress:
        progress.start_episode(make_episode().key, "pick up the bowl")
        progress.add_inference(make_inference(infer_ms=900.0, warmup=True))
        progress.add_inference(make_inference(infer_ms=20.0))
        progress.add_inference(make_inference(infer_ms=30.0))
        progress.add_episode(make_episode())
        progress.add_episode(make_episode(episode=1, success=False))
        progress.add_episode(make_episode(episode=2, error_type="OSError", error_message="two\n[b]lines[/b]"))
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().splitlines() == [
        "libero_spatial-task0-episode0-seed7: success, 112 steps, 14.2 s | episodes 1/10 | "
        "success 1/1 (100.0%), errors 0 | infer p50 25.0 ms (n=2) | time left 0:04:30",
        "libero_spatial-task0-episode1-seed7: failure, 112 steps, 14.2 s | episodes 2/10 | "
        "success 1/2 (50.0%), errors 0 | infer p50 25.0 ms (n=2) | time left 0:04:00",
        "libero_spatial-task0-episode2-seed7: error OSError: two [b]lines[/b], 112 steps, 14.2 s | "
        "episodes 3/10 | success 1/2 (50.0%), errors 1 | infer p50 25.0 ms (n=2) | time left 0:03:30",
    ]


def test_a_retried_episode_counts_once(make_episode: Episode) -> None:
    out = io.StringIO()
    with Progress(2, Console(file=out)) as progress:
        progress.add_episode(make_episode(error_type="OSError"))
        progress.add_episode(make_episode())
    last = out.getvalue().splitlines()[-1]
    assert "episodes 1/2 | success 1/1 (100.0%), errors 0 | infer p50 - (n=0)" in last


TASKS = {0: ("pick up the bowl", 2), 3: ("pick up the cup", 2)}


def terminal(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, force_interactive=True, width=width, height=30), out


def screens(out: io.StringIO) -> list[str]:
    """What was drawn, without colours, a line each."""
    return [line.rstrip() for line in re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()]


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_shows_the_run_its_tasks_its_rates_and_the_current_step(
    width: int, make_episode: Episode, make_inference: Inference
) -> None:
    console, out = terminal(width)
    with Progress(4, console, tasks=TASKS, steps=(5, 220), clock_s=ticking(1.0)) as progress:
        progress.start_episode(make_episode().key, TASKS[0][0])
        progress.add_inference(make_inference(infer_ms=20.0, call=12))
        drawn = screens(out)
        assert any(line.startswith("episodes ") and line.endswith(" 0/4 time left unknown") for line in drawn)
        assert "success 0/0 | errors 0" in drawn
        assert "infer p50 20.0 ms (n=1)" in drawn
        assert "now task 0 episode 0 step 60 of 220: bowl" in drawn  # the words that tell the tasks apart
        progress.add_episode(make_episode())
        progress.add_episode(make_episode(episode=1, error_type="OSError", error_message="GL lost"))
    drawn = screens(out)
    ended = "libero_spatial-task0-episode{}-seed7: {}, 112 steps, 14.2 s"
    assert any(ended.format(0, "success") in line for line in drawn)
    assert any(ended.format(1, "error OSError: GL lost") in line for line in drawn)
    assert any(re.fullmatch(r" +0 bowl .* 2/2 success 1/1 errors 1", line) for line in drawn)
    assert any(re.fullmatch(r" +3 cup .* 0/2 success 0/0", line) for line in drawn)
    [rate] = {line for line in drawn if line.startswith("success 1/1") and "errors 1" in line}
    assert re.fullmatch(r"success 1/1 100.0% \(20.7 to 100.0 %\) \| errors 1 \| [0-9.]+ episodes/min", rate)
    assert max(map(len, drawn)) <= width


def test_errors_are_red(make_episode: Episode) -> None:
    console, out = terminal(80)
    with Progress(4, console, tasks=TASKS) as progress:
        progress.add_episode(make_episode(error_type="OSError", error_message="GL lost"))
    assert "\x1b[1;31merrors 1" in out.getvalue()
    assert "\x1b[1;31mlibero_spatial-task0-episode0-seed7: error OSError" in out.getvalue()


def test_of_many_episodes_at_once_all_are_named(make_episode: Episode) -> None:
    console, out = terminal(80)
    with Progress(4, console, tasks=TASKS) as progress:
        for episode in range(2):
            progress.start_episode(make_episode(episode=episode).key, "pick up the bowl")
    assert "now task 0 episode 0, task 0 episode 1" in screens(out)


def test_of_ninety_tasks_those_around_the_running_one_have_a_bar(make_episode: Episode) -> None:
    console, out = terminal(80)
    with Progress(90, console, tasks={i: (f"task {i} of many", 1) for i in range(90)}) as progress:
        out.seek(0)
        out.truncate()
        progress.start_episode(make_episode(task_id=50).key, "task 50 of many")
    bars = [line.split()[0] for line in screens(out) if "success 0/0" in line and "errors" not in line]
    assert bars[:10] == [str(i) for i in range(45, 55)]
    assert "10 of 90 tasks" in screens(out)


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}])
def test_where_escapes_are_not_wanted_a_terminal_gets_lines(
    variable: dict[str, str], make_episode: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "CI", "FORCE_COLOR", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes the file for a terminal
    assert report_console(file=io.StringIO()).is_interactive
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    with Progress(4, report_console(file=out), tasks=TASKS) as progress:
        progress.add_episode(make_episode(error_type="OSError", error_message="GL lost"))
    assert "\x1b" not in out.getvalue()
    [line] = out.getvalue().splitlines()
    assert "error OSError: GL lost" in line


def test_a_terminal_is_drawn_by_no_thread() -> None:
    before = threading.active_count()
    with Progress(1, Console(file=io.StringIO(), force_terminal=True, force_interactive=True)):
        assert threading.active_count() == before
