"""The local runner: one process, task after task, episode after episode."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from eval.episodes.plan import Plan
from eval.episodes.rollout import Rollout
from eval.episodes.runner import EpisodeRunner, episode_record
from eval.records.engagement import Engagement
from eval.runners.recorder import RunRecorder
from eval.runners.watch import Watch
from eval.sim.tasks import Task
from policies.base import EpisodeKey, Policy


class LocalRunner:
    """Runs episodes in this process, with a policy that is ready; `close` calls `on_close` once.

    Args:
        watch: limits the episodes; None lets them take as long as they do.
    """

    def __init__(
        self,
        policy: Policy,
        simulator: Mapping[str, Any],
        on_close: Callable[[], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.policy = policy
        self._watch = watch
        self._on_close = on_close
        self.about: Mapping[str, Any] = policy.provenance()
        self.simulator = simulator
        self.facts: Mapping[str, Any] = {"name": "local"}

    def run(self, plan: Plan, recorder: RunRecorder) -> None:
        episode_runner = EpisodeRunner(plan, self.policy)
        watch = self._watch
        with recorder, watch.running() if watch else nullcontext():
            try:
                for task, keys in plan.todo():
                    if recorder.decided:
                        break
                    for key in keys:
                        recorder.start_episode(key, task.language)
                        with self._limited(plan, task, key):
                            result = episode_runner.run(task, key, recorder.add_inference)
                        recorder.add_episode(
                            result.record,
                            first_frame_sha256=result.rollout.first_frame_sha256,
                            write_video=partial(episode_runner.save_video, result)
                            if result.rollout.snapshots
                            else None,
                            cause=result.error,
                        )
            finally:
                episode_runner.close()
        recorder.finish()

    def _limited(self, plan: Plan, task: Task, key: EpisodeKey) -> AbstractContextManager[None]:
        if self._watch is None:
            return nullcontext()
        overdue = episode_record(plan, task, key, Rollout(), self._watch.limit_s, self._watch.overdue())
        return self._watch.episode(overdue)

    def engagement(self) -> Engagement:
        return self.policy.engagement()

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
