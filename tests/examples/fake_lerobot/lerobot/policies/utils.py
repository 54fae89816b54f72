"""As `lerobot.policies.utils`."""

from collections import deque
from typing import Any


def populate_queues(queues: dict[str, deque], batch: dict[str, Any]) -> dict[str, deque]:
    """Append what `queues` has a queue for; an empty one is filled with copies."""
    for key in set(batch) & set(queues):
        queue = queues[key]
        queue.extend([batch[key]] * (1 if len(queue) == queue.maxlen else queue.maxlen))
    return queues
