"""Which episodes of which tasks a run has: all of them or a shard, in the form that run.json keeps."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

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
