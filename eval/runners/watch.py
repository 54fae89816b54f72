"""A limit for the episodes of a local run: what hangs is interrupted, and ended where it cannot be.

Non-obvious behaviors:
    * A process of its own waits (`eval.runners.waiter`). A thread would take the interpreter lock in the
      middle of a timed inference, and could do nothing while compiled code holds it.
    * An episode that Python can interrupt is an error of the run, EpisodeTimeout. Where compiled code does
      not return, another process ends this one and takes over: it writes the episode's record and shows the
      summary (`heir`). That also holds for a signal that compiled code does not let through.
    * Only the main thread can be interrupted; in another one nothing is watched.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from eval.records.schema import EpisodeRecord, to_plain
from eval.runners.base import EpisodeTimeout
from eval.runners.waiter import INTERRUPT


class Watch:
    """Limits episodes; `running` is around all of them, `episode` around each.

    Args:
        limit_s: `runner.episode_timeout_s`.
        heir: a command that ends the process whose number is its last but one argument, and writes the record
            (JSON) that is its last one; empty where nobody may end this process.
    """

    def __init__(self, limit_s: float, heir: Sequence[str] = ()) -> None:
        self.limit_s = limit_s
        self._heir = list(heir)
        self._waiter: subprocess.Popen[bytes] | None = None
        self._since_s: float | None = None  # when the episode began that runs

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch what happens inside."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        script = str(Path(__file__).with_name("waiter.py"))
        waiter = self._waiter = subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(os.getpid()), str(self.limit_s), *self._heir],
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a terminal's ctrl-C is not for it
        )
        assert waiter.stdin is not None, "it was asked for"
        pipe = waiter.stdin.fileno()
        os.set_blocking(pipe, False)
        handler = signal.signal(INTERRUPT, self._interrupt)
        wakeup = signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(INTERRUPT, handler)
            self._say("left")
            self._waiter = None
            waiter.stdin.close()
            waiter.wait()

    @contextlib.contextmanager
    def episode(self, record: EpisodeRecord) -> Iterator[None]:
        """Raise EpisodeTimeout inside when the limit is over; where that cannot be, `record` is written."""
        self._since_s = time.monotonic()
        self._say(f"begin {json.dumps(to_plain(vars(record), str(record.key)))}")
        try:
            yield
        finally:
            self._since_s = None
            self._say("end")

    def overdue(self) -> EpisodeTimeout:
        """The error of an episode that takes too long."""
        return EpisodeTimeout(f"runner.episode_timeout_s={self.limit_s:g} is over")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._since_s is not None and time.monotonic() - self._since_s >= self.limit_s:
            self._since_s = None  # once
            raise self.overdue()

    def _say(self, text: str) -> None:
        if self._waiter is not None and self._waiter.stdin is not None:
            with contextlib.suppress(OSError):  # it was killed: nothing is watched any more
                os.write(self._waiter.stdin.fileno(), f"{text}\n".encode())
