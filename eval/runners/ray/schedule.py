"""Choose a worker's next episode: it keeps its scene, then takes the scene with the most work left."""

import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType

from policies.base import EpisodeKey


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
