"""Progress: plain lines without a terminal, a live display with one."""

import io
import threading
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from eval.records.schema import EpisodeRecord, InferenceRecord
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


def test_a_terminal_shows_rate_latency_and_the_current_task(
    make_episode: Episode, make_inference: Inference
) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_interactive=True, width=120)
    with Progress(10, console) as progress:
        progress.start_episode(make_episode().key, "pick up the bowl")
        progress.add_inference(make_inference(infer_ms=20.0))
        assert "episodes 0/10 | success 0/0, errors 0 | infer p50 20.0 ms (n=1)" in out.getvalue()
        assert "time left unknown" in out.getvalue()
        assert "libero_spatial-task0-episode0-seed7: pick up the bowl" in out.getvalue()
        progress.add_episode(make_episode())
        progress.add_episode(make_episode(episode=1, error_type="OSError", error_message="GL lost"))
    assert "success 1/1 (100.0%), errors 1" in out.getvalue()
    assert "error OSError: GL lost" in out.getvalue()


def test_a_terminal_is_drawn_by_no_thread() -> None:
    before = threading.active_count()
    with Progress(1, Console(file=io.StringIO(), force_terminal=True, force_interactive=True)):
        assert threading.active_count() == before
