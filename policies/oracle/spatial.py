"""The expert of libero_spatial: it grasps a bowl by its rim and places it on the plate.

At every call it decides from the current poses, so it recovers from dropped bowls, missed grasps and noise
on its actions. Frames and units are those of `policies.oracle.scene`.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from policies.base import Observation
from policies.oracle.scene import UP, OracleOptions, Scene, check_served, look
from policies.oracle.servo import CLOSE, OPEN, Gains, Servo


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


class SpatialExpert:
    """One episode's machine."""

    def __init__(self, options: OracleOptions) -> None:
        self.options = options
        self.phase = Phase.HOVER
        self.steps = 0  # in this phase
        self.opposite = False  # grasp at the other side of the rim, because the usual one was blocked
        self.grasped_height = 0.0  # of the bowl's origin when the fingers closed
        self.servo = Servo(
            Gains(
                options.gain,
                options.turn_gain,
                options.integral_gain,
                options.integral_limit,
                options.integral_range,
            )
        )

    def act(self, observation: Observation) -> NDArray[np.float64]:
        """Return an action (7,) in [-1, 1].

        Raises:
            ValueError: the scene has no such bowl or plate, or the instruction asks for something else.
        """
        check_served(observation)
        self._advance(look(observation, self.options, opposite=self.opposite))
        scene = look(observation, self.options, opposite=self.opposite)  # again: it may have changed sides
        target, gripper = self._aim(scene)
        self.steps += 1
        return self.servo.act(target - scene.grip, scene.turn, gripper)

    def enter(self, phase: Phase) -> None:
        self.phase, self.steps = phase, 0

    def retry(self, *, blocked: bool = False) -> None:
        """Start over with open fingers, on the other side of the rim where this one was `blocked`."""
        self.opposite ^= blocked
        self.servo.forget()
        self.enter(Phase.HOVER)

    def _advance(self, scene: Scene) -> None:
        """Enter the next phase when the poses end this one, or the first phase after a mishap."""
        options = self.options
        if self.phase in HOLDING and np.linalg.norm(scene.bowl - scene.grip) > options.dropped:
            self.retry()
        match self.phase:
            case Phase.HOVER:
                level = np.linalg.norm(scene.turn) < options.tilted_rad
                if scene.placed:
                    self.enter(Phase.RETREAT)
                elif scene.grasp_miss < options.aligned and level and self.steps >= options.release_steps:
                    self.enter(Phase.DESCEND)
                elif self.steps > options.travel_patience:
                    self.retry(blocked=True)
            case Phase.DESCEND:
                if scene.grasp_miss > options.astray:
                    self.enter(Phase.HOVER)
                elif scene.grip[2] < scene.grasp[2] + options.close_early:
                    self.enter(Phase.CLOSE)
                elif self.steps > options.contact_patience:
                    self.retry(blocked=True)
            case Phase.CLOSE:
                if self.steps >= options.close_steps:
                    self.grasped_height = float(scene.bowl[2])
                    self.enter(Phase.LIFT)
            case Phase.LIFT:
                if scene.bowl[2] > self._carry_height(scene) - options.aligned:
                    self.enter(Phase.CARRY)
                elif self.steps > options.contact_patience:
                    self.retry()
            case Phase.CARRY:
                if scene.plate_miss < options.aligned:
                    self.enter(Phase.LOWER)
                elif self.steps > options.travel_patience:
                    self.retry()
            case Phase.LOWER:
                if scene.plate_miss > options.astray:
                    self.enter(Phase.CARRY)
                elif scene.placed or self.steps > options.contact_patience:
                    self.servo.forget()
                    self.enter(Phase.RELEASE)
            case Phase.RELEASE:
                if self.steps >= options.release_steps:
                    self.enter(Phase.RETREAT)
            case Phase.RETREAT:
                clear = scene.grip[2] > scene.grasp[2] + options.hover_height
                if clear and not scene.placed:
                    self.retry()

    def _aim(self, scene: Scene) -> tuple[NDArray[np.float64], float]:
        """Choose where the grip site should be, and whether the fingers open or close."""
        options = self.options
        target = scene.grip.copy()
        match self.phase:
            case Phase.HOVER:
                return self._above(scene, options.hover_height), OPEN
            case Phase.DESCEND:
                return scene.grasp, OPEN
            case Phase.CLOSE:
                return scene.grasp, CLOSE
            case Phase.LIFT:
                target[2] += self._carry_height(scene) - scene.bowl[2]
                return target, CLOSE
            case Phase.CARRY:
                cone = scene.plate[2] + options.slope * scene.plate_miss
                target[:2] += (scene.plate - scene.bowl)[:2]
                target[2] += min(self._carry_height(scene), cone) - scene.bowl[2]
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

    def _carry_height(self, scene: Scene) -> float:
        """How high the bowl's origin travels to the plate."""
        return max(self.grasped_height, float(scene.plate[2])) + self.options.lift_height
