"""Choose a worker's next episode: it keeps its scene, then takes the scene with the most work left."""

import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from policies.base import EpisodeKey


class Waiting(Protocol):
    """Episodes that wait, and who gets the next."""

    def __len__(self) -> int: ...

    def next(self, worker: Hashable) -> EpisodeKey | None:
        """Take the next episode for a worker; None when none waits."""
        ...

    def put_back(self, key: EpisodeKey) -> None:
        """Schedule an episode again, before others."""
        ...

    def learn(self, key: EpisodeKey, seconds: float) -> None:
        """Record an episode's duration."""
        ...

    def forget(self, worker: Hashable) -> None:
        """Forget a worker's scene: it has lost its environment."""
        ...


class InOrder:
    """Waiting episodes in an order, of which a worker takes the first of its scene among the next few.

    A run that may stop reads its episodes in that order: those ahead of it would be run for nothing.

    Args:
        keys: in their order.
        scene_of: as in `Schedule`.
        task_of: as in `Schedule`.
    """

    def __init__(
        self, keys: Iterable[EpisodeKey], task_of: Mapping[int, int], scene_of: Mapping[int, Hashable]
    ) -> None:
        self._waiting = list(keys)
        self._scenes = scene_of
        self._scene_of = dict[Hashable, Hashable](
            (worker, scene_of[task]) for worker, task in task_of.items()
        )
        self._ahead = 2 * len(set(scene_of.values()))

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, worker: Hashable) -> EpisodeKey | None:
        if not self._waiting:
            return None
        own = self._scene_of.get(worker)
        near = [i for i, key in enumerate(self._waiting[: self._ahead]) if self._scenes[key.task_id] == own]
        key = self._waiting.pop(near[0] if near else 0)
        self._scene_of[worker] = self._scenes[key.task_id]
        return key

    def put_back(self, key: EpisodeKey) -> None:
        self._waiting.insert(0, key)

    def learn(self, key: EpisodeKey, seconds: float) -> None:
        pass

    def forget(self, worker: Hashable) -> None:
        self._scene_of.pop(worker, None)


class Schedule:
    """Waiting episodes, by scene: of a task, or of several that one environment serves.

    A worker that has built a scene's environment stays with the scene. Without one, or when nothing of it is
    left, it takes the scene with the most seconds left for each worker on it, so that the longest begin first
    and many workers end together. The estimate for a scene is the mean of its known episodes, or of all known
    ones.

    Args:
        task_of: the tasks of workers that have an environment already.
        scene_of: the scene of each task; a task that is not in it is a scene of its own.
    """

    def __init__(
        self,
        todo: Iterable[Sequence[EpisodeKey]],
        task_of: Mapping[int, int] = MappingProxyType({}),
        scene_of: Mapping[int, Hashable] = MappingProxyType({}),
    ) -> None:
        self._scenes = scene_of
        self._waiting: dict[Hashable, deque[EpisodeKey]] = {}
        for key in itertools.chain.from_iterable(todo):
            self._waiting.setdefault(self._scene(key.task_id), deque()).append(key)
        self._seconds: dict[Hashable, list[float]] = {}
        self._scene_of = dict[Hashable, Hashable](
            (worker, self._scene(task)) for worker, task in task_of.items()
        )

    def __len__(self) -> int:
        return sum(len(keys) for keys in self._waiting.values())

    def next(self, worker: Hashable) -> EpisodeKey | None:
        """Take the next episode for a worker; None when none waits."""
        open_scenes = [scene for scene, keys in self._waiting.items() if keys]
        if not open_scenes:
            return None
        if self._scene_of.get(worker) not in open_scenes:
            self._scene_of.pop(worker, None)
            self._scene_of[worker] = max(open_scenes, key=self._load)
        return self._waiting[self._scene_of[worker]].popleft()

    def put_back(self, key: EpisodeKey) -> None:
        """Schedule an episode again, before others of its scene."""
        self._waiting[self._scene(key.task_id)].appendleft(key)

    def learn(self, key: EpisodeKey, seconds: float) -> None:
        """Record an episode's duration."""
        self._seconds.setdefault(self._scene(key.task_id), []).append(seconds)

    def forget(self, worker: Hashable) -> None:
        """Forget a worker's scene: it has lost its environment."""
        self._scene_of.pop(worker, None)

    def _scene(self, task_id: int) -> Hashable:
        return self._scenes.get(task_id, task_id)

    def _load(self, scene: Hashable) -> float:
        known = (
            self._seconds.get(scene) or [s for seconds in self._seconds.values() for s in seconds] or [1.0]
        )
        workers = sum(other == scene for other in self._scene_of.values())
        return len(self._waiting[scene]) * (sum(known) / len(known)) / (1 + workers)
