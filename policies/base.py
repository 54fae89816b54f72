"""The policy protocol: observations in, action chunks out.

H horizon (actions per chunk), J 7 robot action dims: 3 translation, 3 rotation, 1 gripper (-1 open, +1
close).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.truth import Truth

ACTION_DIM = 7  # LIBERO's OSC_POSE: delta position, delta axis-angle, gripper


@dataclass(frozen=True, order=True)
class EpisodeKey:
    """Names an episode; with the policy and the seeding it determines everything that happens."""

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
        privileged: poses by name, only for policies that set `needs_privileged`.
        truth: goal, shapes, poses and joints, for the same policies.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float64]
    instruction: str  # the task in words
    privileged: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    truth: Truth | None = None


@dataclass(frozen=True)
class GuideOptions:
    """How strongly new chunks are guided towards old ones: real-time chunking (arXiv 2506.07339).

    Attributes:
        beta: the largest strength; 0 guides nothing.
        jacobian: identity, or exact: of the denoised actions by the noisy ones, which needs a backward pass.
    """

    beta: float
    jacobian: str = "identity"

    def __str__(self) -> str:
        return f"beta={self.beta:g}, jacobian={self.jacobian}"


@dataclass(frozen=True)
class Guidance:
    """What the robot would do with the old chunk in the steps of the new one; H horizon, A padded dims.

    Attributes:
        old_HA: float32, normalised; row i belongs to the new chunk's action i; zeros where the old one ended.
        weights_H: float32, of each action: 1 follows the old one, 0 is free.
    """

    old_HA: NDArray[np.float32]
    weights_H: NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """One inference to run; `call` counts the inferences of the episode from 0.

    Attributes:
        guidance: None where there is no old chunk, or nothing is to be guided.
    """

    observation: Observation
    episode: EpisodeKey
    call: int
    guidance: Guidance | None = None


@dataclass(frozen=True)
class ActionChunk:
    """The result of one inference; both mappings are empty where a policy has no stages.

    A stage is served by its backend, or by another where that missed the call.
    """

    actions_HJ: NDArray[np.float64]  # (horizon, 7), in the simulator's units, ready for `env.step`
    stage_ms: Mapping[str, float] = field(default_factory=dict)  # milliseconds
    backends: Mapping[str, str] = field(default_factory=dict)  # stage to what served it
    normalised_HA: NDArray[np.float32] | None = None  # the same for the next `Guidance`, of a guided policy
    setup_ms: float = 0.0  # of the call that made it: no inference, as connecting to a server again


class Policy(Protocol):
    """What a runner needs of a policy."""

    name: str  # label in records and tables
    cameras: tuple[str, ...]  # images it wants in an observation; empty: nothing is rendered for it
    needs_privileged: bool  # whether it reads `Observation.privileged`
    replan_steps: int  # actions of a chunk that are executed before the next inference

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Answer each request with a chunk, in order; the chunks are on the host when this returns."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Describe the policy for records: hashes of weights and norm stats, device, precision, labels."""
        ...

    def engagement(self) -> dict[str, dict[str, Any]]:
        """Count the calls of each stage: served by its backend, missed by it and served by another, refused.

        Empty for a policy without stages.
        """
        ...
