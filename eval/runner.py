"""The local runner: one process, task after task, episode after episode, recorded as they happen.

Non-obvious behaviors:
    * An episode that raises is recorded with its exception and the environment is built anew; one more than
      `runner.max_errors` of them stops the run.
    * Ctrl-C ends the run after the record of the episode before; nothing recorded is lost.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.libero_env import CONTROL_HZ, LiberoEnv, Task
from eval.progress import Progress
from eval.records import EpisodeRecord, InferenceRecord, RecordingError, RunWriter, Seeding
from eval.rollout import Rollout, roll
from eval.tracking import SafeTracker
from eval.video import VideoMode, video_name, write_video
from policies.base import EpisodeKey, Policy

log = logging.getLogger(__name__)

FILM_EVERY = 2  # control steps a video frame: 10 frames a second


class RunFailed(RuntimeError):
    """The run cannot count as a result: too many errors, or a backend that did not engage."""


@dataclass(frozen=True)
class Plan:
    """What a run sets out to do: the chosen tasks, which of their episodes, and how.

    Attributes:
        misses_allowed: whether eager may serve calls that a backend was not built for
            (`optim.on_mismatch=fallback`); they are counted and shown, and a backend that served none is an
            error all the same.
    """

    tasks: Sequence[Task]
    episodes: range
    seed: int
    seeding: Seeding
    max_steps: int
    max_errors: int
    warmup_inferences: int
    video: VideoMode
    misses_allowed: bool
    checkpoint: str | None
    checkpoint_sha256: str | None
    weights_label: str | None

    @property
    def num_episodes(self) -> int:
        return len(self.tasks) * len(self.episodes)

    def keys(self, task: Task) -> Iterator[EpisodeKey]:
        """Yield the task's episodes in the order in which they are run."""
        for episode in self.episodes:
            yield EpisodeKey(task.suite, task.task_id, episode, self.seed)


class LocalRunner:
    """Roll a plan's episodes with one policy; `run_info` is what run.json says besides the outcome."""

    def __init__(
        self, plan: Plan, policy: Policy, writer: RunWriter, tracker: SafeTracker, run_info: Mapping[str, Any]
    ) -> None:
        self.plan = plan
        self.policy = policy
        self.writer = writer
        self.tracker = tracker
        self.run_info = dict(run_info)
        self.errors = 0
        self.finished = False
        self.video_error: str | None = None
        self._last_error = ""
        self._warmup_left = plan.warmup_inferences
        self._progress = Progress(plan.num_episodes, label=plan.weights_label)

    def run(self) -> None:
        """Run every episode of the plan.

        Raises:
            RunFailed: more than `max_errors` episodes raised, none finished, or a stage's backend served no
                call, or not every call where the plan allows no misses.
        """
        self.write_run()
        with self._progress:
            for task in self.plan.tasks:
                self._run_task(task)
        if self.errors == self.plan.num_episodes:
            raise RunFailed(f"no episode finished: all {self.errors} raised; the last was {self._last_error}")
        self._check_engagement()
        self.finished = True

    def write_run(self) -> None:
        """Write run.json as things stand."""
        outcome = {
            "finished": self.finished,
            "engagement": self.policy.engagement(),
            "tracking_error": self.tracker.error,
            "video_error": self.video_error,
        }
        self.writer.write_run(self.run_info | outcome)

    def _run_task(self, task: Task) -> None:
        env: LiberoEnv | None = None
        try:
            for key in self.plan.keys(task):
                env = self._run_episode(env, task, key)
        finally:
            _close(env)

    def _build(self, task: Task) -> LiberoEnv:
        render = bool(self.policy.cameras) or self.plan.video is not VideoMode.NONE
        return LiberoEnv(task, seeding=self.plan.seeding, render=render)

    def _run_episode(self, env: LiberoEnv | None, task: Task, key: EpisodeKey) -> LiberoEnv | None:
        """Run and record one episode; return its environment, or None when the next one needs a new one."""
        self._progress.start_episode(key, task.language)
        rollout = Rollout()
        error: Exception | None = None
        start = time.perf_counter()
        try:
            if env is None:
                env = self._build(task)
                start = time.perf_counter()
            roll(
                env,
                self.policy,
                key,
                self.plan.max_steps,
                rollout,
                self._on_inference,
                warmup_inferences=self._warmup_left,
                film_every=0 if self.plan.video is VideoMode.NONE else FILM_EVERY,
            )
        except RecordingError:
            _close(env)
            raise
        except Exception as raised:  # noqa: BLE001  whatever simulator or policy raise is this episode's outcome
            error = raised
        self._warmup_left = max(0, self._warmup_left - rollout.inferences)
        record = EpisodeRecord(
            suite=key.suite,
            task_id=key.task_id,
            instruction=task.language,
            episode=key.episode,
            seed=key.seed,
            seeding=self.plan.seeding,
            success=None if error else bool(rollout.success),
            steps=rollout.steps,
            inferences=rollout.inferences,
            wall_s=time.perf_counter() - start,
            policy=self.policy.name,
            checkpoint=self.plan.checkpoint,
            checkpoint_sha256=self.plan.checkpoint_sha256,
            weights_label=self.plan.weights_label,
            actions_sha256=rollout.actions_sha256,
            initial_state_sha256=rollout.initial_state_sha256,
            error_type=type(error).__name__ if error else None,
            error_message=str(error) if error else None,
        )
        self._keep(record, env, rollout)
        if error is None:
            return env
        _close(env)  # an environment that raised is not used again
        self.errors += 1
        self._last_error = f"{key}: {type(error).__name__}: {error}"
        if self.errors > self.plan.max_errors:
            raise RunFailed(
                f"{self.errors} episodes raised, more than runner.max_errors={self.plan.max_errors}; "
                f"the last was {self._last_error}"
            ) from error
        return None

    def _keep(self, record: EpisodeRecord, env: LiberoEnv | None, rollout: Rollout) -> None:
        self.writer.add_episode(record)
        if self.run_info.get("first_frame_sha256") is None and rollout.first_frame_sha256 is not None:
            self.run_info["first_frame_sha256"] = rollout.first_frame_sha256
            self.write_run()
        video = None
        if env is not None and rollout.film and self.plan.video.keeps(record):
            video = self._film(record, env, rollout)
        self.tracker.log_episode(record, video)
        self._progress.add_episode(record)

    def _film(self, record: EpisodeRecord, env: LiberoEnv, rollout: Rollout) -> Path | None:
        """Return the episode's video; None when it could not be made, which is kept in `video_error`."""
        path = self.writer.folder / "videos" / video_name(record)
        try:
            write_video(
                [env.render(snapshot) for snapshot in rollout.film], path, fps=CONTROL_HZ // FILM_EVERY
            )
        except Exception as error:  # noqa: BLE001  a video is no reason to lose the episodes to come
            self.video_error = f"{path.name}: {type(error).__name__}: {error}"
            log.warning("no video: %s", self.video_error)
            return None
        return path

    def _on_inference(self, record: InferenceRecord) -> None:
        self.writer.add_inference(record)
        self.tracker.log_inference(record)
        self._progress.add_inference(record)

    def _check_engagement(self) -> None:
        idle = [
            f"{stage}: {report['backend']} served {report['calls']} calls and missed {report['misses']}"
            for stage, report in self.policy.engagement().items()
            if report["calls"] == 0 or (report["misses"] > 0 and not self.plan.misses_allowed)
        ]
        if idle:
            raise RunFailed("a backend did not engage: " + "; ".join(idle))


def _close(env: LiberoEnv | None) -> None:
    """Close an environment that may be damaged."""
    if env is None:
        return
    try:
        env.close()
    except Exception as error:  # noqa: BLE001  its episode has its outcome already
        log.warning("closing %s task %d failed: %s", env.task.suite, env.task.task_id, error)
