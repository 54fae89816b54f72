"""The process beside a local run that ends what hangs; `eval.runners.watch` starts it as a script.

It waits for lines on stdin, so that it costs the run nothing, and needs the standard library alone:
`begin RECORD`, `end`, `left`. Bytes of signals, which Python's C handler writes as they come, stand between.
"""

import contextlib
import os
import select
import signal
import sys
import time

INTERRUPT = signal.SIGUSR2  # asks the run to raise EpisodeTimeout
AGAIN_S = 1.0  # between two such signals: compiled code may lose one
GRACE_S = 10.0  # from the first of them until compiled code is found not to return
SIGNAL_GRACE_S = 4.0  # from a signal that ends a run
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Waiter:
    """Watches one process; `heir` is the command that ends it and takes over."""

    def __init__(self, pid: int, limit_s: float, heir: list[str]) -> None:
        self.pid, self.limit_s, self.heir = pid, limit_s, heir
        self.record = ""  # of the episode that runs, as it would be written
        self.overdue_s = self.doomed_s = self.next_s = float("inf")

    def wait(self) -> None:
        """Return when the run has left its episodes, or has ended."""
        rest = b""
        while True:
            soonest_s = min(self.next_s, self.doomed_s) - time.monotonic()
            timeout_s = None if soonest_s == float("inf") else max(soonest_s, 0.0)
            if select.select([0], [], [], timeout_s)[0]:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, rest = (rest + self._without_signals(data)).split(b"\n")
                for line in lines:
                    word, _, text = line.decode().partition(" ")
                    if word == "left":
                        return
                    self._follow(word, text)
            self._act()

    def _without_signals(self, data: bytes) -> bytes:
        if any(number in data for number in ENDING) and self.doomed_s == float("inf"):
            self.doomed_s = time.monotonic() + SIGNAL_GRACE_S
        return bytes(byte for byte in data if byte >= 32 or byte == 10)

    def _follow(self, word: str, text: str) -> None:
        self.record = text
        self.next_s = self.overdue_s = float("inf")
        if word == "begin" and self.limit_s < float("inf"):
            self.next_s = self.overdue_s = time.monotonic() + self.limit_s

    def _act(self) -> None:
        now_s = time.monotonic()
        if now_s >= self.doomed_s:
            self._take_over("")
        elif now_s >= self.overdue_s + GRACE_S:
            self._take_over(self.record)
        elif now_s >= self.next_s:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, INTERRUPT)
            self.next_s = now_s + AGAIN_S

    def _take_over(self, record: str) -> None:
        if self.heir and os.getppid() == self.pid:
            os.execv(self.heir[0], [*self.heir, str(self.pid), record])
        self.next_s = self.overdue_s = self.doomed_s = float("inf")


if __name__ == "__main__":
    Waiter(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]).wait()
