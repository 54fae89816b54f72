"""Run progress: a live line on a terminal, one plain line per episode elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from eval.records.schema import EpisodeRecord, InferenceRecord, Outcome
from policies.base import EpisodeKey
from policies.streams import surviving
from policies.text import visible


class Progress:
    """Shows the running success rate, errors, inference p50, time left and the current task.

    Non-obvious behaviors:
        The display is drawn only inside these calls: a refresh thread would take the interpreter lock in
        the middle of a timed inference.
        A retried episode counts once, with its last outcome.
        It goes quiet when nobody reads it any more: that is no reason to stop.

    Args:
        total_episodes: how many this run will do; time left is the mean time of those done in this process,
            times the rest.
        console: stderr by default, so that stdout stays free for results.
        label: a warning about the weights, shown with every episode.
        earlier: episodes of the run that other processes have done.
        clock_s: seconds that only go forward.
    """

    def __init__(
        self,
        total_episodes: int,
        console: Console | None = None,
        label: str | None = None,
        earlier: Iterable[EpisodeRecord] = (),
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_episodes
        self._console = console or Console(file=sys.stderr)
        self._console.file = surviving(self._console.file)
        self._label = f"{label} | " if label else ""
        self._clock_s = clock_s
        self._start_s = clock_s()
        self._outcomes: dict[EpisodeKey, Outcome] = {record.key: record.outcome for record in earlier}
        self._earlier = len(self._outcomes)
        self._infer_ms: list[float] = []
        self._current = "starting"
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._start_s = self._clock_s()
        if self._console.is_interactive:
            self._live = Live(self._status(), console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start_episode(self, key: EpisodeKey, instruction: str) -> None:
        """Show the episode that begins now."""
        self._current = f"{key}: {instruction}"
        self._draw()

    def add_inference(self, record: InferenceRecord) -> None:
        """Count one inference; warm-up ones and those under load do not enter the p50."""
        if record.condition == "alone":
            self._infer_ms.append(record.infer_ms)
        self._draw()

    def add_episode(self, record: EpisodeRecord) -> None:
        """Count one episode, and print its line where the display is not live."""
        self._outcomes[record.key] = record.outcome
        if self._live is None or record.outcome == "error":
            self._console.print(Text(visible(self._episode_line(record))), soft_wrap=True)
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._status(), refresh=True)

    def _status(self) -> Text:
        return Text(visible(f"{self._counts()}\n{self._current}", lines=True))

    def _episode_line(self, record: EpisodeRecord) -> str:
        what = f"{record.key}: {record.outcome}"
        if record.outcome == "error":
            message = " ".join((record.error_message or "").split())  # a line stays a line
            what += f" {record.error_type}: {message}"
        return f"{what}, {record.steps} steps, {record.wall_s:.1f} s | {self._counts()}"

    def _counts(self) -> str:
        done = list(self._outcomes.values())
        successes, errors = done.count("success"), done.count("error")
        finished = len(done) - errors
        rate = f" ({successes / finished:.1%})" if finished else ""
        infer = "infer p50 - (n=0)"
        if self._infer_ms:
            infer = f"infer p50 {np.percentile(self._infer_ms, 50):.1f} ms (n={len(self._infer_ms)})"
        return (
            f"{self._label}episodes {len(done)}/{self._total} | "
            f"success {successes}/{finished}{rate}, errors {errors} | {infer} | {self._time_left()}"
        )

    def _time_left(self) -> str:
        done = len(self._outcomes) - self._earlier
        if done == 0:
            return "time left unknown"
        left = self._total - len(self._outcomes)
        left_s = round((self._clock_s() - self._start_s) / done * left)
        return f"time left {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
