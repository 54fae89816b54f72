"""The episodes of a run, all or a shard, in the form that run.json keeps."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from policies.base import EpisodeKey


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 1: `1/4` to `4/4` are the whole; ValueError for any other part."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"shard must be i/n with 1 <= i <= n, as in 1/4, got {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `i/n`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"shard must be i/n with 1 <= i <= n, as in 1/4, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, keys: Sequence[EpisodeKey]) -> Sequence[EpisodeKey]:
        """Cut out this part: consecutive keys, so that few environments are built; sizes differ by one."""
        return keys[len(keys) * (self.index - 1) // self.count : len(keys) * self.index // self.count]


@dataclass(frozen=True)
class Episodes:
    """A run's episodes, named without a simulator; run.json holds them."""

    suite: str
    tasks: tuple[int, ...]  # ids, in the order in which `runner=local` takes them
    first: int
    count: int  # episodes `first` ... of each task's official initial states
    seed: int
    shard: Shard | None = None  # None is all

    def keys(self) -> tuple[EpisodeKey, ...]:
        """List the keys, task after task."""
        keys = [
            EpisodeKey(self.suite, task, episode, self.seed)
            for task in self.tasks
            for episode in range(self.first, self.first + self.count)
        ]
        return tuple(keys if self.shard is None else self.shard.of(keys))

    def left(self, done: Collection[EpisodeKey]) -> list[EpisodeKey]:
        """List the keys that are not done, in order."""
        return [key for key in self.keys() if key not in done]

    def whole(self) -> Self:
        """Drop the shard."""
        return replace(self, shard=None)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"tasks": list(self.tasks), "shard": str(self.shard) if self.shard else None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        shard = Shard.parse(plain["shard"]) if plain["shard"] else None
        return cls(**{**plain, "tasks": tuple(plain["tasks"]), "shard": shard})
