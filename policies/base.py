"""The policy protocol: observations in, action chunks out.

H horizon (actions per chunk), J 7 robot action dims: 3 translation, 3 rotation, 1 gripper (-1 open, +1
close).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ACTION_DIM = 7  # LIBERO's OSC_POSE: delta position, delta axis-angle, gripper


@dataclass(frozen=True, order=True)
class EpisodeKey:
    """What an episode is a pure function of, together with the policy and the seeding."""

    suite: str
    task_id: int
    episode: int
    seed: int

    def __str__(self) -> str:
        return f"{self.suite}-task{self.task_id}-episode{self.episode}-seed{self.seed}"


@dataclass(frozen=True)
class Observation:
    """What the robot senses at one moment.

    Attributes:
        images: camera name (`agentview_image`, ...) to uint8 (height, width, 3), upright as the policy was
            trained. Only the cameras that the policy asked for; a missing one is a KeyError.
        state: float64 (8,): end-effector position in metres, its axis-angle in radians, two gripper joints in
            metres.
        instruction: the task in words.
        privileged: simulator truth by name, only for policies that set `needs_privileged`.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float64]
    instruction: str
    privileged: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One inference asked for: `call` counts the inferences of the episode from 0."""

    observation: Observation
    episode: EpisodeKey
    call: int


@dataclass(frozen=True)
class ActionChunk:
    """What one inference returns.

    Attributes:
        actions_HJ: float64 (horizon, 7), in the simulator's units, ready for `env.step`.
        stage_ms: time of each stage in milliseconds (empty where a policy has no stages).
        backends: stage to who served this call: its backend, or another where that missed it (empty
            likewise).
    """

    actions_HJ: NDArray[np.float64]
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)


class Policy(Protocol):
    """A policy as the runner sees it.

    Attributes:
        name: the label in records and tables.
        cameras: images it wants in an observation; empty means that nothing is rendered for it.
        needs_privileged: whether it reads `Observation.privileged`.
        replan_steps: actions of a chunk that are executed before it is asked again.
    """

    name: str
    cameras: tuple[str, ...]
    needs_privileged: bool
    replan_steps: int

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Return one chunk per request, in order; the result is on the host when this returns."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return what a record must say of this policy: weights and norm-stats hashes, device, precision,
        labels."""
        ...

    def engagement(self) -> dict[str, dict[str, Any]]:
        """Return per stage: backend, calls served by it, calls that missed it and another served, calls that
        it refused; empty for policies without stages."""
        ...
