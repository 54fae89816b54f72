"""Run progress: bars on a terminal, under a line for each episode that ended; plain lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from eval.records.schema import EpisodeRecord, InferenceRecord, Outcome
from eval.runners.display import OUTCOMES, State, TaskState, block
from policies.base import EpisodeKey
from policies.streams import surviving
from policies.text import distinct, pluralize, visible

REDRAW_S = 0.1  # between two pictures while an episode runs


class Progress:
    """Shows the running success rate, errors, inference p50, time left and the current episodes.

    Non-obvious behaviors:
        The display is drawn only inside these calls: a refresh thread would take the interpreter lock in
        the middle of a timed inference.
        A retried episode counts once, with its last outcome.
        It goes quiet when nobody reads it any more: that is no reason to stop.

    Args:
        total_episodes: how many this run will do; time left is the mean time of those done in this process,
            times the rest.
        console: stderr by default, so that stdout stays free for results; bars where it is interactive.
        label: a warning about the weights, shown with every episode.
        earlier: episodes of the run that other processes have done.
        tasks: number of each task to its instruction and how many of the episodes are its own.
        steps: control steps between two inferences, and at most in an episode; None where they are not known.
        clock_s: seconds that only go forward.
    """

    def __init__(
        self,
        total_episodes: int,
        console: Console | None = None,
        label: str | None = None,
        earlier: Iterable[EpisodeRecord] = (),
        tasks: Mapping[int, tuple[str, int]] | None = None,
        steps: tuple[int, int] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_episodes
        self._console = console or Console(file=sys.stderr)
        self._console.file = surviving(self._console.file)
        self._label = label
        self._clock_s = clock_s
        self._start_s = clock_s()
        self._outcomes: dict[EpisodeKey, Outcome] = {record.key: record.outcome for record in earlier}
        self._earlier = len(self._outcomes)
        self._tasks = tasks or {}
        self._names = dict(
            zip(self._tasks, distinct([text for text, _ in self._tasks.values()]), strict=True)
        )
        self._steps = steps
        self._infer_ms: list[float] = []
        self._running: dict[EpisodeKey, int | None] = {}  # episode to inferences
        self._live: Live | None = None
        self._drawn_s = -REDRAW_S

    def __enter__(self) -> Self:
        self._start_s = self._clock_s()
        if self._console.is_interactive:
            self._live = Live(Group(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start_episode(self, key: EpisodeKey, instruction: str) -> None:
        """Show the episode that begins now."""
        self._running[key] = None
        self._names.setdefault(key.task_id, instruction)
        self._draw()

    def add_inference(self, record: InferenceRecord) -> None:
        """Count one inference; warm-up ones and those under load do not enter the p50."""
        if record.condition == "alone":
            self._infer_ms.append(record.infer_ms)
        if record.key in self._running:
            self._running[record.key] = record.call
        if self._live is not None and self._clock_s() - self._drawn_s >= REDRAW_S:
            self._draw()

    def add_episode(self, record: EpisodeRecord) -> None:
        """Count one episode and print its line, above the bars where there are some."""
        self._outcomes[record.key] = record.outcome
        self._running.pop(record.key, None)
        if self._live is None:
            line = f"{_ended(record)} | {self._counts()}"
            self._console.print(Text(visible(line), style=_style(record)), soft_wrap=True)
        else:
            self._console.print(Text(visible(_ended(record)), style=OUTCOMES[record.outcome]))
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._drawn_s = self._clock_s()
            picture = block(self._state(), self._console.width, self._console.height)
            self._live.update(picture, refresh=True)

    def _state(self) -> State:
        counts = Counter(self._outcomes.values())
        by_task = Counter((key.task_id, outcome) for key, outcome in self._outcomes.items())
        running = {key.task_id for key in self._running}
        done, passed_s = len(self._outcomes) - self._earlier, self._clock_s() - self._start_s
        return State(
            label=self._label,
            total=self._total,
            tasks=[
                TaskState(
                    number,
                    self._names[number],
                    total,
                    by_task[number, "success"],
                    by_task[number, "failure"],
                    by_task[number, "error"],
                    number in running,
                )
                for number, (_, total) in self._tasks.items()
            ],
            successes=counts["success"],
            failures=counts["failure"],
            errors=counts["error"],
            running=[self._now(key, call) for key, call in self._running.items()],
            latency=self._latency(),
            time_left=self._time_left(),
            per_minute=60 * done / passed_s if done and passed_s > 0 else None,
        )

    def _now(self, key: EpisodeKey, call: int | None) -> str:
        words = f"task {key.task_id} episode {key.episode}"
        if len(self._running) > 1:
            return words
        if call is not None:
            words += f" inference {call + 1}"
            if self._steps is not None:
                replan, most = self._steps
                words = f"task {key.task_id} episode {key.episode} step {min(call * replan, most)} of {most}"
        return f"{words}: {self._names[key.task_id]}"

    def _counts(self) -> str:
        done = list(self._outcomes.values())
        successes, errors = done.count("success"), done.count("error")
        finished = len(done) - errors
        rate = f" ({successes / finished:.1%})" if finished else ""
        return (
            f"{f'{self._label} | ' if self._label else ''}episodes {len(done)}/{self._total} | "
            f"success {successes}/{finished}{rate}, errors {errors} | {self._latency()} | {self._time_left()}"
        )

    def _latency(self) -> str:
        if not self._infer_ms:
            return "infer p50 - (n=0)"
        return f"infer p50 {np.percentile(self._infer_ms, 50):.1f} ms (n={len(self._infer_ms)})"

    def _time_left(self) -> str:
        done = len(self._outcomes) - self._earlier
        if done == 0:
            return "time left unknown"
        left = self._total - len(self._outcomes)
        left_s = round((self._clock_s() - self._start_s) / done * left)
        return f"time left {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"


def _ended(record: EpisodeRecord) -> str:
    what = f"{record.key}: {record.outcome}"
    if record.outcome == "error":
        message = " ".join((record.error_message or "").split())  # a line stays a line
        what += f" {record.error_type}: {message}"
    return f"{what}, {pluralize(record.steps, 'step')}, {record.wall_s:.1f} s"


def _style(record: EpisodeRecord) -> str:
    return OUTCOMES["error"] if record.outcome == "error" else ""
