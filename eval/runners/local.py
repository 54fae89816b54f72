"""The local runner: one process, task after task, episode after episode."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from eval.episodes.plan import Plan
from eval.episodes.runner import EpisodeRunner
from eval.records.engagement import Engagement
from eval.runners.recorder import RunRecorder
from policies.base import Policy


class LocalRunner:
    """Runs episodes in this process, with a policy that is ready; `close` calls `on_close` once."""

    def __init__(
        self, policy: Policy, simulator: Mapping[str, Any], on_close: Callable[[], None] | None = None
    ) -> None:
        self.policy = policy
        self._on_close = on_close
        self.about: Mapping[str, Any] = policy.provenance()
        self.simulator = simulator
        self.facts: Mapping[str, Any] = {"name": "local"}

    def run(self, plan: Plan, recorder: RunRecorder) -> None:
        episode_runner = EpisodeRunner(plan, self.policy)
        with recorder:
            try:
                for task, keys in plan.todo():
                    for key in keys:
                        recorder.start_episode(key, task.language)
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

    def engagement(self) -> Engagement:
        return self.policy.engagement()

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
