"""What a run sets out to do: which episodes of which tasks, in which shard, and under which conditions."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from eval.libero_env import Task
from eval.records import EpisodeRecord, Seeding
from eval.video import VideoMode
from policies.base import EpisodeKey


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1: `1/4` to `4/4` are the whole.

    Raises:
        ValueError: no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"shard must be i/n with 1 <= i <= n, as in 1/4, got {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that `i/n` names."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"shard must be i/n with 1 <= i <= n, as in 1/4, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, keys: Sequence[EpisodeKey]) -> Sequence[EpisodeKey]:
        """Return this part: consecutive ones, so that few environments are built; sizes differ by one."""
        return keys[len(keys) * (self.index - 1) // self.count : len(keys) * self.index // self.count]


@dataclass(frozen=True)
class Episodes:
    """The episodes of a run, without what a simulator would have to say of them; run.json holds it.

    Attributes:
        tasks: their ids, in the order in which `runner=local` takes them.
        first, count: of each task's official initial states.
        shard: which part of them; None is all.
    """

    suite: str
    tasks: tuple[int, ...]
    first: int
    count: int
    seed: int
    shard: Shard | None = None

    def keys(self) -> tuple[EpisodeKey, ...]:
        """Return the keys, task after task."""
        keys = [
            EpisodeKey(self.suite, task, episode, self.seed)
            for task in self.tasks
            for episode in range(self.first, self.first + self.count)
        ]
        return tuple(keys if self.shard is None else self.shard.of(keys))

    def left(self, done: Collection[EpisodeKey]) -> list[EpisodeKey]:
        """Return the keys that are not done, in order."""
        return [key for key in self.keys() if key not in done]

    def whole(self) -> Self:
        """Return what this is a shard of."""
        return replace(self, shard=None)

    def to_dict(self) -> dict[str, Any]:
        """Return it for run.json."""
        return vars(self) | {"tasks": list(self.tasks), "shard": str(self.shard) if self.shard else None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `to_dict` was called on."""
        shard = Shard.parse(plain["shard"]) if plain["shard"] else None
        return cls(**{**plain, "tasks": tuple(plain["tasks"]), "shard": shard})


@dataclass(frozen=True)
class Plan:
    """The episodes of a run with their tasks, and how they are run.

    Attributes:
        tasks: those that `episodes` names.
        done: episodes that an earlier process of this run has finished; they are not run again.
        misses_allowed: whether eager may serve calls that a backend was not built for
            (`optim.on_mismatch=fallback`); they are counted and shown, and a backend that served none is an
            error all the same.
        policy, checkpoint, checkpoint_sha256, weights_label: of every record.
    """

    tasks: Sequence[Task]
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
    done: frozenset[EpisodeKey] = field(default_factory=frozenset)

    @property
    def num_episodes(self) -> int:
        return len(self.episodes.keys())

    def todo(self) -> list[tuple[Task, list[EpisodeKey]]]:
        """Return what is left of each task, in order; tasks of which nothing is left are not in it."""
        keys = self.episodes.left(self.done)
        by_task = [(task, [key for key in keys if key.task_id == task.task_id]) for task in self.tasks]
        return [(task, left) for task, left in by_task if left]

    def foreign(self, records: Iterable[EpisodeRecord]) -> list[str]:
        """Say which of these records are not of this plan: another episode, policy, checkpoint or seeding."""
        keys = set(self.episodes.keys())
        ours = (self.seeding, self.policy, self.checkpoint_sha256)
        found = []
        for record in records:
            theirs = (record.seeding, record.policy, record.checkpoint_sha256)
            if record.key not in keys:
                found.append(f"{record.key} is not planned")
            elif theirs != ours:
                found.append(f"{record.key} has (seeding, policy, checkpoint_sha256) {theirs}, not {ours}")
        return found
