"""Run one episode after another, in one environment at a time: a key goes in, an episode's record comes out.

Every runner uses `EpisodeRunner`, in its own process or in others.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval.episodes.plan import Plan
from eval.episodes.rollout import PolicyLost, Rollout, run_episode
from eval.episodes.signals import raise_pending
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.video import VideoMode, write_video
from eval.records.writer import RecordingError
from eval.sim.env import CONTROL_HZ, LiberoEnv
from eval.sim.tasks import Task
from policies.base import EpisodeKey, Policy

log = logging.getLogger(__name__)

MOST_MESSAGE = 100_000  # characters of an error that are recorded
SNAPSHOT_EVERY = 2  # control steps a video frame: 10 frames a second


@dataclass(frozen=True)
class EpisodeResult:
    """An episode that ended, by itself or by `error`, which `record` then holds."""

    record: EpisodeRecord
    rollout: Rollout
    error: Exception | None


class EpisodeRunner:
    """Runs episodes of a plan with one policy; keeps the environment while the scene stays the same.

    Non-obvious behaviors:
        An environment that raised is closed before the next episode and not used again. Until then it can
        still render the episode's video.

    Args:
        env: to begin with, for one of the plan's tasks, with its seeding and the cameras that are needed.
    """

    def __init__(self, plan: Plan, policy: Policy, env: LiberoEnv | None = None) -> None:
        self.plan = plan
        self.policy = policy
        self._env = env
        self._damaged = False
        self._warmup_left = plan.warmup_inferences

    def run(
        self, task: Task, key: EpisodeKey, on_inference: Callable[[InferenceRecord], None]
    ) -> EpisodeResult:
        """Run one episode; an exception is its result, except RecordingError and PolicyLost.

        Raises KeyboardInterrupt where one is behind the exception.
        """
        rollout = Rollout()
        error: Exception | None = None
        start = time.perf_counter()
        try:
            env = self._environment(task)
            start = time.perf_counter()
            run_episode(
                env,
                self.policy,
                key,
                self.plan.max_steps,
                rollout,
                on_inference,
                warmup_inferences=self._warmup_left,
                snapshot_every=0 if self.plan.video is VideoMode.NONE else SNAPSHOT_EVERY,
                clock=self.plan.clock,
            )
        except (RecordingError, PolicyLost):
            self._damaged = True
            raise
        except Exception as raised:  # noqa: BLE001  whatever simulator or policy raise is this episode's result
            self._damaged = True
            raise_pending(raised)
            error = raised
        self._warmup_left = max(0, self._warmup_left - rollout.inferences)
        wall_s = time.perf_counter() - start
        record = episode_record(self.plan, task, key, rollout, wall_s, error)
        return EpisodeResult(record, rollout, error)

    def save_video(self, result: EpisodeResult, path: Path) -> None:
        """Write the video of the episode that ran last; whatever goes wrong is raised."""
        assert self._env is not None, "an episode that has snapshots had an environment"
        frames = [self._env.render(snapshot) for snapshot in result.rollout.snapshots]
        write_video(frames, path, fps=CONTROL_HZ // SNAPSHOT_EVERY)

    def close(self) -> None:
        """Close the environment, which may be damaged."""
        env, self._env, self._damaged = self._env, None, False
        if env is None:
            return
        try:
            env.close()
        except Exception as error:  # noqa: BLE001  its episodes have their outcomes already
            log.warning("closing %s task %d failed: %s", env.task.suite, env.task.task_id, error)

    def _environment(self, task: Task) -> LiberoEnv:
        env = self._env
        if env is not None and (self._damaged or env.task.scene != task.scene):
            self.close()
        elif env is not None and (env.task.suite, env.task.task_id) != (task.suite, task.task_id):
            env.serve(task)
        if self._env is None:
            render = bool(self.policy.cameras) or self.plan.video is not VideoMode.NONE
            self._env = self.plan.make_env(task, seeding=self.plan.seeding, render=render)
        return self._env


def episode_record(
    plan: Plan, task: Task, key: EpisodeKey, rollout: Rollout, wall_s: float, error: Exception | None
) -> EpisodeRecord:
    """Make the record of an episode that ended with `error`, or by itself."""
    return EpisodeRecord(
        suite=key.suite,
        task_id=key.task_id,
        instruction=task.language,
        episode=key.episode,
        seed=key.seed,
        seeding=plan.seeding,
        success=None if error else bool(rollout.success),
        steps=rollout.steps,
        inferences=rollout.inferences,
        wall_s=wall_s,
        policy=plan.policy,
        checkpoint=plan.checkpoint,
        checkpoint_sha256=plan.checkpoint_sha256,
        weights_label=plan.weights_label,
        actions_sha256=rollout.actions_sha256,
        initial_state_sha256=rollout.initial_state_sha256,
        clock=rollout.statistics.record(plan.clock, rollout.steps) if plan.clock.charges else None,
        error_type=type(error).__name__ if error else None,
        error_message=str(error)[:MOST_MESSAGE] if error else None,
    )
