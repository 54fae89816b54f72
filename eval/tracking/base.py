"""Run tracking: a mirror of the records that never decides whether an episode is kept."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from eval.records.reader import Run
from eval.records.schema import EpisodeRecord, InferenceRecord
from policies.text import visible

MODES = ("online", "offline", "disabled")


def new_id() -> str:
    """Draw the id of a tracked run."""
    return secrets.token_hex(8)


class TrackingError(RuntimeError):
    """Tracking cannot start as configured."""


@dataclass(frozen=True)
class TrackedRun:
    """A run, described to a tracker before the first record."""

    config: Mapping[str, Any]  # composed configuration and facts of the run, in plain values
    name: str
    folder: Path  # the tracker writes only below it
    group: str | None = None  # joins the runs of a sweep
    tags: Sequence[str] = ()
    id: str = field(default_factory=new_id)  # a resumed run's is that of its first process
    earlier: Run | None = None  # what processes before this one recorded


class Tracker(Protocol):
    """Mirrors a run; `check` and `start` are called first, `finish` last, once each."""

    def check(self) -> None:
        """Raise TrackingError if the run cannot be mirrored as configured, before anything heavy starts."""
        ...

    def start(self, run: TrackedRun) -> None:
        """Open the run."""
        ...

    def log_inference(self, record: InferenceRecord) -> None:
        """Mirror one inference."""
        ...

    def log_episode(self, record: EpisodeRecord, video: Path | None) -> None:
        """Mirror one episode, with its video when there is one."""
        ...

    def finish(self, summary: dict[str, Any]) -> None:
        """Mirror the summary (`Summary.to_dict()`; empty when there is none) and close the run."""
        ...


class RecordsTracker(Tracker, Protocol):
    """A tracker that says what stopped it."""

    error: str | None


class NullTracker:
    """Mirrors nothing."""

    def check(self) -> None:
        pass

    def start(self, run: TrackedRun) -> None:
        pass

    def log_inference(self, record: InferenceRecord) -> None:
        pass

    def log_episode(self, record: EpisodeRecord, video: Path | None) -> None:
        pass

    def finish(self, summary: dict[str, Any]) -> None:
        pass


class SafeTracker:
    """Keeps a tracker's failures away from the episodes.

    The first failure is printed once on stderr and kept in `error`; later records are not sent. `finish` is
    still tried, so that the tracker can close what it opened.

    Non-obvious behaviors:
        A TrackingError of `check` and `start` is passed through: no episode has run yet, and a run that
        should be online must not go on untracked.
    """

    def __init__(self, tracker: Tracker, console: Console | None = None) -> None:
        self.error: str | None = None
        self._tracker = tracker
        self._console = console or Console(stderr=True)

    def check(self) -> None:
        self._tracker.check()

    def start(self, run: TrackedRun) -> None:
        try:
            self._tracker.start(run)
        except TrackingError:
            raise
        except Exception as error:  # noqa: BLE001  the library may raise anything; the episodes go on
            self._keep(error, "the start of the run")

    def log_inference(self, record: InferenceRecord) -> None:
        if self.error is None:
            try:
                self._tracker.log_inference(record)
            except Exception as error:  # noqa: BLE001  the library may raise anything; the episode goes on
                self._keep(error, f"inference {record.call} of {record.key}")

    def log_episode(self, record: EpisodeRecord, video: Path | None) -> None:
        if self.error is None:
            try:
                self._tracker.log_episode(record, video)
            except Exception as error:  # noqa: BLE001  the library may raise anything; the run goes on
                self._keep(error, str(record.key))

    def finish(self, summary: dict[str, Any]) -> None:
        try:
            self._tracker.finish(summary)
        except Exception as error:  # noqa: BLE001  the library may raise anything; the records are complete
            self._keep(error, "the end of the run")

    def _keep(self, error: Exception, when: str) -> None:
        if self.error is None:
            self.error = f"{type(error).__name__} at {when}: {error}"
            message = f"tracking stopped, the records on disk go on: {self.error}"
            self._console.print(Text(visible(message)), style="yellow", soft_wrap=True)
