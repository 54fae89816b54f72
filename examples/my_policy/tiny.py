"""The smallest policy: random motions of a chosen size, drawn from the episode's key."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from policies.base import ACTION_DIM, ActionChunk, Request
from policies.seeding import action_noise


class TinyPolicy:
    name = "tiny"
    cameras = ()
    needs_privileged = False
    replan_steps = 5

    def __init__(self, size: float = 0.1) -> None:
        self.size = size

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        return [ActionChunk(self.size * self._draw(request)) for request in requests]

    def provenance(self) -> dict[str, Any]:
        return {}

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {}

    def _draw(self, request: Request) -> Any:
        noise = action_noise(request.episode, request.call, self.replan_steps, ACTION_DIM)
        return noise.astype(np.float64)
