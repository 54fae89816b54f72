"""ActionQueue: a chunk in, `replan_steps` actions out, then the next chunk is due."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from policies.base import ACTION_DIM, ActionChunk


def checked(chunk: ActionChunk, replan_steps: int) -> NDArray[np.float64]:
    """Take a chunk's actions_HJ in float64, as the simulator takes them and records hash them.

    Raises ValueError for fewer than `replan_steps`, or actions that are not (horizon, 7) finite numbers.
    """
    actions = chunk.actions_HJ.astype(np.float64, copy=False)
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) < replan_steps:
        raise ValueError(
            f"a chunk needs at least replan_steps={replan_steps} rows of {ACTION_DIM} actions, "
            f"got shape {actions.shape}"
        )
    if not np.all(np.isfinite(actions)):
        raise ValueError(
            f"the policy returned actions that are not finite: {actions[~np.isfinite(actions)][:3]}"
        )
    return actions


class ActionQueue:
    """Hands out the first `replan_steps` actions of each chunk, one per control step."""

    def __init__(self, replan_steps: int) -> None:
        if replan_steps < 1:
            raise ValueError(f"replan_steps must be >= 1, got {replan_steps}")
        self.replan_steps = replan_steps
        self._actions: deque[NDArray[np.float64]] = deque()

    def __len__(self) -> int:
        return len(self._actions)

    def refill(self, chunk: ActionChunk) -> None:
        """Replace what is left by the head of a new chunk; ValueError as in `checked`."""
        self._actions = deque(checked(chunk, self.replan_steps)[: self.replan_steps])

    def pop(self) -> NDArray[np.float64]:
        """Take the next action (7,); IndexError when the queue is empty."""
        return self._actions.popleft()
