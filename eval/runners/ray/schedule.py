"""Choose a worker's next episode: it keeps its task, then takes the task with the most work left."""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType

from policies.base import EpisodeKey


class Schedule:
    """Waiting episodes, by task.

    A worker that has built a task's environment stays with the task. Without one, or when nothing of its task
    is left, it takes the task with the most seconds left for each worker on it, so that the longest begin
    first and many workers end together. The estimate for a task is the mean of its known episodes, or of all
    known ones.

    Args:
        task_of: the tasks of workers that have an environment already.
    """

    def __init__(
        self,
        todo: Iterable[Sequence[EpisodeKey]],
        task_of: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._waiting = {keys[0].task_id: deque(keys) for keys in todo}
        self._seconds: dict[int, list[float]] = {}
        self._task_of = dict[Hashable, int](task_of.items())

    def __len__(self) -> int:
        return sum(len(keys) for keys in self._waiting.values())

    def next(self, worker: Hashable) -> EpisodeKey | None:
        """Take the next episode for a worker; None when none waits."""
        open_tasks = [task for task, keys in self._waiting.items() if keys]
        if not open_tasks:
            return None
        if self._task_of.get(worker) not in open_tasks:
            self._task_of.pop(worker, None)
            self._task_of[worker] = max(open_tasks, key=self._load)
        return self._waiting[self._task_of[worker]].popleft()

    def put_back(self, key: EpisodeKey) -> None:
        """Schedule an episode again, before others of its task."""
        self._waiting[key.task_id].appendleft(key)

    def learn(self, key: EpisodeKey, seconds: float) -> None:
        """Record an episode's duration."""
        self._seconds.setdefault(key.task_id, []).append(seconds)

    def forget(self, worker: Hashable) -> None:
        """Forget a worker's task: it has lost its environment."""
        self._task_of.pop(worker, None)

    def _load(self, task: int) -> float:
        known = self._seconds.get(task) or [s for seconds in self._seconds.values() for s in seconds] or [1.0]
        workers = sum(other == task for other in self._task_of.values())
        return len(self._waiting[task]) * (sum(known) / len(known)) / (1 + workers)
