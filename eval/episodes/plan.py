"""A run's plan: which episodes of which tasks, in which shard, under which conditions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from eval.episodes.clock import FREE, Clock
from eval.records.episodes import Episodes
from eval.records.schema import EpisodeRecord
from eval.records.video import VideoMode
from eval.sim.env import LiberoEnv
from eval.sim.tasks import Task
from policies.base import EpisodeKey
from policies.seeding import Seeding

MakeEnv = Callable[..., LiberoEnv]
"""Builds an environment from a task, `seeding` and `render`, as `LiberoEnv` does."""


@dataclass(frozen=True)
class Plan:
    """The episodes of a run with their tasks, and how they are run.

    `policy`, `checkpoint`, `checkpoint_sha256` and `weights_label` go into every record.

    Attributes:
        done: episodes that an earlier process of this run has finished; they are not run again.
        misses_allowed: whether eager may serve calls that a backend was not built for
            (`optim.on_mismatch=fallback`); they are counted and shown, and a backend that served none is
            still an error.
        order: all episodes in the order in which they are run, one by one; None runs them task by task.
    """

    tasks: Sequence[Task]  # those that `episodes` names
    episodes: Episodes
    seeding: Seeding
    max_steps: int
    max_errors: int
    warmup_inferences: int
    video: VideoMode
    misses_allowed: bool
    policy: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    weights_label: str | None
    clock: Clock = FREE
    make_env: MakeEnv = LiberoEnv
    done: frozenset[EpisodeKey] = field(default_factory=frozenset)
    order: Sequence[EpisodeKey] | None = None

    @property
    def num_episodes(self) -> int:
        return len(self.episodes.keys())

    def task(self, key: EpisodeKey) -> Task:
        """Look up the task of one of the plan's episodes."""
        return next(task for task in self.tasks if task.task_id == key.task_id)

    def todo(self) -> list[tuple[Task, list[EpisodeKey]]]:
        """List what is left of each task, in order; finished tasks are left out. With `order`, a task comes
        once for each episode."""
        if self.order is not None:
            return [(self.task(key), [key]) for key in self.order if key not in self.done]
        keys = self.episodes.left(self.done)
        by_task = [(task, [key for key in keys if key.task_id == task.task_id]) for task in self.tasks]
        return [(task, left) for task, left in by_task if left]

    def foreign(self, records: Iterable[EpisodeRecord]) -> list[str]:
        """Name records that do not fit this plan: another episode, policy, checkpoint or seeding."""
        keys = set(self.episodes.keys())
        planned = (self.seeding, self.policy, self.checkpoint_sha256)
        foreign = []
        for record in records:
            recorded = (record.seeding, record.policy, record.checkpoint_sha256)
            if record.key not in keys:
                foreign.append(f"{record.key} is not planned")
            elif recorded != planned:
                foreign.append(
                    f"{record.key} has (seeding, policy, checkpoint_sha256) {recorded}, not {planned}"
                )
        return foreign
