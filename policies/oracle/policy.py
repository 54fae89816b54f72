"""A scripted expert for libero_spatial: reads poses from the simulator, grasps a bowl by its rim, places it.

It checks the harness without weights (a score far below 100 % is the harness's fault) and can teach: at
every call it decides from the current poses, so it recovers from dropped bowls, missed grasps and noise on
its actions.

Frames and units are those of `policies.oracle.scene`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.base import ACTION_DIM, ActionChunk, EpisodeKey, Request
from policies.oracle.scene import (
    SUITE,
    UP,
    OracleOptions,
    Scene,
    check_served,
    look,
)

# LIBERO's OSC_POSE controller (robosuite osc_pose.json): what an action of 1.0 asks for
METRES_PER_ACTION = 0.05
RADIANS_PER_ACTION = 0.5
OPEN, CLOSE = -1.0, 1.0


class Phase(StrEnum):
    """What the hand is doing; the order is that of an episode without mishaps."""

    HOVER = "hover"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    RELEASE = "release"
    RETREAT = "retreat"


HOLDING = (Phase.LIFT, Phase.CARRY, Phase.LOWER)


@dataclass
class _Memory:
    phase: Phase = Phase.HOVER
    steps: int = 0  # in this phase
    opposite: bool = False  # grasp at the other side of the rim, because the usual one was blocked
    grasped_height: float = 0.0  # of the bowl's origin when the fingers closed
    integral: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def enter(self, phase: Phase) -> None:
        self.phase, self.steps = phase, 0

    def retry(self, *, blocked: bool = False) -> None:
        """Start over with open fingers, on the other side of the rim where this one was `blocked`."""
        self.opposite ^= blocked
        self.integral[:] = 0.0  # what it has learnt against the obstacle is wrong in free space
        self.enter(Phase.HOVER)


class OraclePolicy:
    """The expert as a policy: no cameras, privileged poses, one action per call.

    Non-obvious behaviors:
        * It has memory per episode. Call 0 starts an episode anew, wherever the objects are; a later call of
          an episode that it does not remember is an error.
        * LIBERO ends an episode at touch-down, while the fingers still hold the bowl. Only those who step on,
          such as recorders of demonstrations, see release and retreat.
    """

    name = "oracle"
    cameras: tuple[str, ...] = ()
    needs_privileged = True
    replan_steps = 1

    def __init__(self, options: OracleOptions | None = None) -> None:
        self.options = options or OracleOptions()
        self._memories: OrderedDict[EpisodeKey, _Memory] = OrderedDict()

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Answer each request with one action (1, 7) in [-1, 1].

        Raises:
            ValueError: the scene has no such bowl or plate, or the instruction asks for something else.
            KeyError: a call after 0 of an episode that is not remembered.
        """
        return [ActionChunk(actions_HJ=self._act(request)[None]) for request in requests]

    def phase(self, episode: EpisodeKey) -> Phase:
        """The phase that chose the last action of a remembered episode."""
        return self._memories[episode].phase

    def provenance(self) -> dict[str, Any]:
        return {"kind": "oracle", "suite": SUITE, "privileged": True, "options": asdict(self.options)}

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {}

    def _act(self, request: Request) -> NDArray[np.float64]:
        check_served(request.observation)
        memory = self._remember(request)
        self._advance(memory, look(request.observation, self.options, opposite=memory.opposite))
        # again: it may have changed sides
        scene = look(request.observation, self.options, opposite=memory.opposite)
        target, gripper = self._aim(memory, scene)
        memory.steps += 1
        return self._servo(memory, target - scene.grip, scene.turn, gripper)

    def _remember(self, request: Request) -> _Memory:
        if request.call == 0:
            self._memories.pop(request.episode, None)
            while len(self._memories) >= self.options.live_episodes:
                self._memories.popitem(last=False)
            self._memories[request.episode] = _Memory()
        elif request.episode not in self._memories:
            raise KeyError(
                f"oracle got call {request.call} of {request.episode} but does not remember it; start an "
                f"episode with call 0 and keep at most live_episodes={self.options.live_episodes} in flight"
            )
        self._memories.move_to_end(request.episode)
        return self._memories[request.episode]

    def _advance(self, memory: _Memory, scene: Scene) -> None:
        """Enter the next phase when the poses end this one, or the first phase after a mishap."""
        options = self.options
        if memory.phase in HOLDING and np.linalg.norm(scene.bowl - scene.grip) > options.dropped:
            memory.retry()
        match memory.phase:
            case Phase.HOVER:
                level = np.linalg.norm(scene.turn) < options.tilted_rad
                if scene.placed:
                    memory.enter(Phase.RETREAT)
                elif scene.grasp_miss < options.aligned and level and memory.steps >= options.release_steps:
                    memory.enter(Phase.DESCEND)
                elif memory.steps > options.travel_patience:
                    memory.retry(blocked=True)
            case Phase.DESCEND:
                if scene.grasp_miss > options.astray:
                    memory.enter(Phase.HOVER)
                elif scene.grip[2] < scene.grasp[2] + options.close_early:
                    memory.enter(Phase.CLOSE)
                elif memory.steps > options.contact_patience:
                    memory.retry(blocked=True)
            case Phase.CLOSE:
                if memory.steps >= options.close_steps:
                    memory.grasped_height = float(scene.bowl[2])
                    memory.enter(Phase.LIFT)
            case Phase.LIFT:
                if scene.bowl[2] > self._carry_height(memory, scene) - options.aligned:
                    memory.enter(Phase.CARRY)
                elif memory.steps > options.contact_patience:
                    memory.retry()
            case Phase.CARRY:
                if scene.plate_miss < options.aligned:
                    memory.enter(Phase.LOWER)
                elif memory.steps > options.travel_patience:
                    memory.retry()
            case Phase.LOWER:
                if scene.plate_miss > options.astray:
                    memory.enter(Phase.CARRY)
                elif scene.placed or memory.steps > options.contact_patience:
                    memory.integral[:] = 0.0
                    memory.enter(Phase.RELEASE)
            case Phase.RELEASE:
                if memory.steps >= options.release_steps:
                    memory.enter(Phase.RETREAT)
            case Phase.RETREAT:
                clear = scene.grip[2] > scene.grasp[2] + options.hover_height
                if clear and not scene.placed:
                    memory.retry()

    def _aim(self, memory: _Memory, scene: Scene) -> tuple[NDArray[np.float64], float]:
        """Choose where the grip site should be, and whether the fingers open or close."""
        options = self.options
        target = scene.grip.copy()
        match memory.phase:
            case Phase.HOVER:
                return self._above(scene, options.hover_height), OPEN
            case Phase.DESCEND:
                return scene.grasp, OPEN
            case Phase.CLOSE:
                return scene.grasp, CLOSE
            case Phase.LIFT:
                target[2] += self._carry_height(memory, scene) - scene.bowl[2]
                return target, CLOSE
            case Phase.CARRY:
                cone = scene.plate[2] + options.slope * scene.plate_miss
                target[:2] += (scene.plate - scene.bowl)[:2]
                target[2] += min(self._carry_height(memory, scene), cone) - scene.bowl[2]
                return target, CLOSE
            case Phase.LOWER:
                return target + scene.plate - scene.bowl - options.press * UP, CLOSE
            case Phase.RELEASE:
                return target, OPEN
            case Phase.RETREAT:
                return self._above(scene, options.retreat_height), OPEN

    def _above(self, scene: Scene, height: float) -> NDArray[np.float64]:
        """The point above the grasp; while the hand is low and elsewhere, above the hand: sweep nothing."""
        target = scene.grasp + height * UP
        low = scene.grip[2] < scene.grasp[2] + self.options.hover_height - self.options.aligned
        if low and scene.grasp_miss > self.options.astray:
            target[:2] = scene.grip[:2]
        return target

    def _carry_height(self, memory: _Memory, scene: Scene) -> float:
        """How high the bowl's origin travels to the plate."""
        return max(memory.grasped_height, float(scene.plate[2])) + self.options.lift_height

    def _servo(
        self, memory: _Memory, error: NDArray[np.float64], turn: NDArray[np.float64], gripper: float
    ) -> NDArray[np.float64]:
        """Act (7,) as a proportional controller with a small, bounded integral term."""
        options = self.options
        near = np.abs(error) < options.integral_range
        memory.integral = np.clip(
            memory.integral + np.where(near, options.integral_gain * error, 0.0),
            -options.integral_limit,
            options.integral_limit,
        )
        action = np.empty(ACTION_DIM)
        action[:3] = (options.gain * error + memory.integral) / METRES_PER_ACTION
        action[3:6] = options.turn_gain * turn / RADIANS_PER_ACTION
        action[6] = gripper
        return np.clip(action, -1.0, 1.0)
