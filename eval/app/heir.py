"""End a run whose compiled code does not return, and take over; `eval.runners.waiter` starts it."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from eval.app.ending import print_summary
from eval.app.session import summary_of
from eval.episodes.resume import ResumedRun, reopen
from eval.records.foreign import parse_line
from eval.records.schema import EpisodeRecord
from eval.records.writer import RecordingError
from eval.render.console import print_error, print_info, report_console
from policies.files import ROOT

PATIENCE_S = 10.0  # for a killed process to let go of its files
CALL = "import sys; sys.path.insert(0, sys.argv[1]); from eval.app.heir import main; main(*sys.argv[2:])"


def heir_command(folder: Path, go_on: str) -> list[str]:
    """The command of `Watch.heir` for a run's folder; `go_on` is the one that goes on with the run."""
    return [sys.executable, "-P", "-c", CALL, str(ROOT), str(folder), go_on]


def main(name: str, go_on: str, pid: str, record: str) -> None:
    """Kill a run, write a record, show the summary and how to go on.

    Args:
        name: the run's folder.
        pid: its process.
        record: as JSON, of the episode that took too long; empty where a signal was to end the run.
    """
    folder = Path(name)
    with suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
    with _reopen(folder) as run:
        if record:
            run.writer.add_episode(parse_line(record.encode(), EpisodeRecord))
    report_console(stderr=True).show_cursor()  # a live display hid it
    why = json.loads(record)["error_message"] if record else "a signal came"
    print_error(f"{why}, and compiled code does not return: the run was ended")
    print_summary(summary_of(folder), folder)
    print_info(f"go on with it: {go_on}")


def _reopen(folder: Path) -> ResumedRun:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return reopen(folder)
        except RecordingError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
