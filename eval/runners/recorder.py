"""The one path from an episode to its records: files first, then the mirror and the display.

All runners record through it, so records, limits and verdicts are the same for all of them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from eval.analysis.sequential import EarlyStop
from eval.episodes.clock import FREE
from eval.episodes.plan import Plan
from eval.episodes.signals import held_back
from eval.records.engagement import Engagement, at_least, faults, join
from eval.records.reader import Run
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.video import VIDEOS, video_name
from eval.records.writer import RunWriter
from eval.runners.progress import Progress
from eval.tracking.base import RecordsTracker
from policies.base import EpisodeKey

log = logging.getLogger(__name__)

VideoWriter = Callable[[Path], None]
"""Writes the video of an episode to a path, or raises."""


class RunFailed(RuntimeError):
    """The run cannot count as a result: too many errors, or a backend that did not engage."""


class RunRecorder:
    """Writes the records of a run, mirrors and displays them, and judges the run.

    Args:
        run_info: everything in run.json except the outcome.
        engagement: counts how the policy's stages have served so far in this process.
        earlier: what earlier processes of this run recorded; None for a new run.
        console: shows the progress; stderr by default.
        stop: decides when the run may end; None lets it do all that is planned.
    """

    def __init__(
        self,
        plan: Plan,
        writer: RunWriter,
        tracker: RecordsTracker,
        run_info: Mapping[str, Any],
        engagement: Callable[[], Engagement],
        earlier: Run | None = None,
        console: Console | None = None,
        stop: EarlyStop | None = None,
    ) -> None:
        self.plan = plan
        self.writer = writer
        self.tracker = tracker
        self.run_info = dict(run_info)
        self.errors = 0  # episodes of this process that raised and are not tried again
        self.finished = False
        self.video_error: str | None = earlier.run.get("video_error") if earlier else None
        self._stop = stop
        self._engagement = engagement
        self._engaged_before: Engagement = {}
        self._served: dict[str, None] = {}  # stages that inferences name, in their order
        self._num_finished = len(plan.done)
        self._last_error = ""
        done = [record for record in earlier.episodes if record.key in plan.done] if earlier else []
        if stop is not None:
            for record in done:
                stop.add(record.key, record.success)
        if earlier:
            self._served = dict.fromkeys(stage for record in earlier.inferences for stage in record.backends)
            self._engaged_before = at_least(earlier.run.get("engagement") or {}, earlier.inferences)
        self._progress = Progress(
            plan.num_episodes, console, plan.weights_label, done, _tasks(plan), _steps(plan, run_info)
        )

    def __enter__(self) -> Self:
        self.write_run()
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def write_run(self) -> None:
        """Write run.json as things stand."""
        outcome = {
            "finished": self.finished,
            "engagement": self.engagement(),
            "tracking_error": self.tracker.error,
            "video_error": self.video_error,
        }
        if self._stop is not None:
            outcome["stop"] = self._stop.to_dict()
        with held_back():
            self.writer.write_run(self.run_info | outcome)

    @property
    def decided(self) -> bool:
        """Whether nothing more needs to be run."""
        return self._stop is not None and self._stop.decided

    def engagement(self) -> Engagement:
        """Sum how the stages have served in all processes of this run."""
        return join([self._engaged_before, self._engagement()])

    def start_episode(self, key: EpisodeKey, instruction: str) -> None:
        self._progress.start_episode(key, instruction)

    def add_inference(self, record: InferenceRecord) -> None:
        self._served |= dict.fromkeys(record.backends)
        with held_back():
            self.writer.add_inference(record)
        self.tracker.log_inference(record)
        self._progress.add_inference(record)

    def add_episode(
        self,
        record: EpisodeRecord,
        *,
        first_frame_sha256: str | None = None,
        write_video: VideoWriter | None = None,
        retry: bool = False,
        cause: Exception | None = None,
    ) -> None:
        """Record one episode, whose inferences are recorded already.

        Args:
            first_frame_sha256: of the first images that the policy saw.
            write_video: writes the video, if there is one.
            retry: the episode raised and is tried again, so it does not count towards `max_errors`.
            cause: what it raised, for the trace.

        Raises:
            RunFailed: more than `max_errors` episodes raised.
        """
        with held_back():
            self.writer.add_episode(record)
        if self._stop is not None and not retry:
            self._stop.add(record.key, record.success)
        if self.run_info.get("first_frame_sha256") is None:
            self.run_info["first_frame_sha256"] = first_frame_sha256
        video = None
        if write_video is not None and self.plan.video.keeps(record):
            video = self._video(self.writer.folder / VIDEOS / video_name(record), write_video)
        self.write_run()
        self.tracker.log_episode(record, video)
        self._progress.add_episode(record)
        if record.success is not None:
            self._num_finished += 1
        elif not retry:
            self._count_error(record, cause)

    def finish(self) -> None:
        """Judge the run after its last episode.

        Raises:
            RunFailed: no episode finished, or a stage's backend served no call, or not every call where the
                plan allows no misses, or no process could report how many it served.
        """
        if self._num_finished == 0:
            raise RunFailed(f"no episode finished: all {self.errors} raised; the last was {self._last_error}")
        idle = faults(self.engagement(), self._served, misses_allowed=self.plan.misses_allowed)
        if idle:
            raise RunFailed("a backend did not engage: " + "; ".join(idle))
        self.finished = True

    def _count_error(self, record: EpisodeRecord, cause: Exception | None) -> None:
        self.errors += 1
        self._last_error = f"{record.key}: {record.error_type}: {record.error_message}"
        if self.errors > self.plan.max_errors:
            raise RunFailed(
                f"{self.errors} episodes raised, more than runner.max_errors={self.plan.max_errors}; "
                f"the last was {self._last_error}"
            ) from cause

    def _video(self, path: Path, write_video: VideoWriter) -> Path | None:
        """Write the episode's video; None when that failed, which is kept in `video_error`."""
        try:
            write_video(path)
        except Exception as error:  # noqa: BLE001  a video is no reason to lose the episodes to come
            self.video_error = f"{path.name}: {type(error).__name__}: {error}"
            log.warning("no video: %s", self.video_error)
            return None
        return path


def _tasks(plan: Plan) -> dict[int, tuple[str, int]]:
    """Number each task's episodes, for the display."""
    counts = Counter(key.task_id for key in plan.episodes.keys())  # noqa: SIM118  no mapping
    return {task.task_id: (task.language, counts[task.task_id]) for task in plan.tasks}


def _steps(plan: Plan, run_info: Mapping[str, Any]) -> tuple[int, int] | None:
    """Control steps between two inferences and at most in an episode, where time stands still meanwhile."""
    replan_steps = (run_info.get("policy") or {}).get("replan_steps")
    return (replan_steps, plan.max_steps) if replan_steps and plan.clock is FREE else None
