"""Pick an object up and put it where the goal wants it."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from policies.oracle.grasps import TRAVEL, Grasp, choose_grasp
from policies.oracle.hand import PALM_HALF
from policies.oracle.places import Place, carry_height, place, spot
from policies.oracle.servo import CLOSE, OPEN
from policies.oracle.skills.base import (
    ALIGNED,
    ASTRAY,
    CLOSE_STEPS,
    CONTACT_PATIENCE,
    OPEN_STEPS,
    TRAVEL_PATIENCE,
    Aim,
    Machine,
    level,
    miss,
    settled,
    transit,
)
from policies.oracle.view import UP, View, plane
from policies.truth import Predicate

Array = NDArray[np.float64]

SLIPPED = 0.045  # metres that an object may move in the hand; a plate droops by 30 mm
NEAR_GRASP = 0.012  # along the approach, where the fingers may close
TIPPED_COS = 0.9  # an object that has turned by more since the grasp was chosen needs another one
SQUARE_RAD = 0.06  # yaw off at which a book may go down into its compartment
SETTLED = 0.0015  # metres a step: an object that sinks more slowly stands on something
HOLDING = ("lift", "sidestep", "rise", "carry", "lower")
WAY_OUT = 0.03  # metres beside what hangs over an object at which object and palm go up
HANGS = 0.02  # metres that an object released comes up again with the hand


class Carry(Machine):
    """HOVER, DESCEND, CLOSE, LIFT, SIDESTEP (from under something), CARRY, LOWER, RELEASE, RETREAT, SHAKE.

    It measures its progress by the object's pose: an object that moves in the hand is dropped and fetched
    again with another grasp, one that does not come down is let go, one that hangs on an open finger is
    shaken off.
    """

    def __init__(self, predicate: Predicate) -> None:
        super().__init__("hover")
        self.predicate = predicate
        self.thing = predicate.arguments[0]
        self._failed: list[Grasp] = []
        self._grasp: Grasp | None = None
        self._axis = UP  # of the object, when the grasp was chosen
        self._held = np.zeros(3)  # the grasp's point in the hand's frame, when the fingers had closed
        self._column = np.zeros(3)  # where the hand goes straight up
        self._offset: Array | None = None
        self._aside: Array | None = None
        self._hand = np.eye(3)  # orientation wanted while holding
        self._heights: list[float] = []
        self._let_go_at = np.zeros(3)
        self._grasped_z = self._released_at = 0.0

    def act(self, view: View) -> Aim | None:
        self._advance(view)
        self.steps += 1
        return self._aim(view)

    def _retry(self, *, failed: bool) -> None:
        if failed and self._grasp is not None:
            self._failed.append(self._grasp)
        self._grasp = self._offset = self._aside = None
        self.enter("hover", fresh=True)

    def _advance(self, view: View) -> None:
        pose = view.pose(self.thing)
        if (
            self._grasp is not None
            and float(pose.rotation[:, 2] @ self._axis) < TIPPED_COS
            and (self.phase in ("hover", "descend"))
        ):
            self._retry(failed=False)
        if self._grasp is None and self.phase == "hover":
            self._grasp = choose_grasp(view, self.thing, self._failed)
            self._axis = pose.rotation[:, 2].copy()
        if self._grasp is None:
            return
        point, hand = self._grasp.at(pose)
        in_hand = view.hand.T @ (point - view.grip)  # an object may swing about the fingers
        if self.phase in HOLDING:
            slipped = float(np.linalg.norm(in_hand - self._held))
            if slipped > SLIPPED and not (self.phase == "lower" and self.steps > 3):
                self._retry(failed=self.phase == "lift")
                return
        match self.phase:
            case "hover":
                above = point - TRAVEL * hand[:, 2]
                if self.steps >= OPEN_STEPS and settled(view, above, hand, ALIGNED, self.steps):
                    self.enter("descend")
                elif self.steps > TRAVEL_PATIENCE + 20:
                    self._retry(failed=True)
            case "descend":
                error = (point - view.grip) @ hand
                if float(np.hypot(error[0], error[1])) > ASTRAY:
                    self.enter("hover")
                elif error[2] < NEAR_GRASP:
                    # A target that follows what the fingers push would drift away with it.
                    self._column, self._hand = point.copy(), hand
                    self.enter("close")
                elif self.steps > CONTACT_PATIENCE:
                    self._retry(failed=True)
            case "close":
                if self.steps >= CLOSE_STEPS:
                    self._held = in_hand
                    self._grasped_z = float(pose.position[2])
                    self.enter("lift", fresh=True)
            case "lift":
                if pose.position[2] > self._grasped_z + 0.025:
                    self._held = 0.5 * self._held + 0.5 * in_hand
                    self._aside = self._way_out(view)
                    self.enter("sidestep" if self._aside is not None else "rise")
                elif self.steps > CONTACT_PATIENCE:
                    self._retry(failed=True)
            case "sidestep":
                assert self._aside is not None
                if plane(self._aside - pose.position) < ALIGNED or self.steps > TRAVEL_PATIENCE:
                    self._column = view.grip.copy()
                    self.enter("rise")
            case "rise" | "carry":
                target = self._place(view)
                far = plane(target.origin - pose.position)
                height = carry_height(view, self.thing, target, view.others(self.thing))
                turned = abs(target.yaw) < SQUARE_RAD or self.steps > TRAVEL_PATIENCE
                if self.phase == "rise" and pose.position[2] > height - ALIGNED:
                    self._offset = None  # a drawer may have moved meanwhile
                    self._turn_by(target.yaw)
                    self.enter("carry")
                elif self.phase == "carry" and not turned and level(view, self._hand, SQUARE_RAD):
                    self._turn_by(target.yaw)  # it has turned in the hand
                elif self.phase == "carry" and far < ALIGNED and turned:
                    self._heights = []
                    self.enter("lower")
                elif self.steps > TRAVEL_PATIENCE + 40:
                    self._retry(failed=True)
            case "lower":
                target = self._place(view)
                self._heights.append(float(pose.position[2]))
                sunk = self._heights[-5] - self._heights[-1] if len(self._heights) > 8 else 1.0
                arrived = pose.position[2] < target.origin[2] + 0.004
                if arrived or sunk < 4 * SETTLED or self.steps > CONTACT_PATIENCE + 20:
                    self._let_go_at = view.grip.copy()
                    self._released_at = float(pose.position[2])
                    self.enter("release", fresh=True)
                elif plane(target.origin - pose.position) > ASTRAY:
                    self.enter("carry")
            case "release":
                if self.steps >= OPEN_STEPS and (view.truth.gripper > 0.07 or self.steps > 14):
                    self.enter("retreat")
            case "retreat":
                if pose.position[2] > self._released_at + HANGS:
                    self.enter("shake")
            case "shake":
                if self.steps > 14:
                    self.enter("retreat")

    def _aim(self, view: View) -> Aim | None:
        pose = view.pose(self.thing)
        if self._grasp is None:
            return Aim(view.grip + 0.05 * UP, view.hand, OPEN)
        point, hand = self._grasp.at(pose)
        match self.phase:
            case "hover":
                return Aim(transit(view, view.others(), point - TRAVEL * hand[:, 2]), hand, OPEN)
            case "descend":
                return Aim(point, hand, OPEN)
            case "close":
                return Aim(self._column, self._hand, CLOSE)
            case "lift":
                return Aim(np.append(self._column[:2], view.grip[2] + 0.04), self._hand, CLOSE)
            case "sidestep":
                assert self._aside is not None
                error = self._aside - pose.position
                return Aim(view.grip + error, self._hand, CLOSE)
            case "rise":
                target = self._place(view)
                height = carry_height(view, self.thing, target, view.others(self.thing))
                up = view.grip[2] + height + 0.005 - pose.position[2]
                return Aim(np.append(self._column[:2], up), self._hand, CLOSE)
            case "carry":
                target = self._place(view)
                height = carry_height(view, self.thing, target, view.others(self.thing))
                error = target.origin - pose.position
                error[2] = height - pose.position[2]
                if error[2] > 0.03:  # up first
                    error[:2] *= 0.2
                return Aim(view.grip + error, self._hand, CLOSE)
            case "lower":
                target = self._place(view)
                error = target.origin - pose.position
                error[2] = max(error[2], -0.03)
                return Aim(view.grip + error, self._hand, CLOSE)
            case "release":
                return Aim(self._let_go_at, self._hand, OPEN)
            case "shake":
                side = 0.015 * (-1.0) ** (self.steps // 3) * self._hand[:, 0]
                return Aim(self._let_go_at + side, self._hand, OPEN)
            case _:
                away = self._let_go_at - 0.1 * self._hand[:, 2] + 0.02 * UP
                if miss(view, away) < 0.03 or self.steps > CONTACT_PATIENCE:
                    return None
                return Aim(away, self._hand, OPEN)

    def _turn_by(self, yaw: float) -> None:
        self._hand = Rotation.from_rotvec(yaw * UP).as_matrix() @ self._hand

    def _place(self, view: View) -> Place:
        if self._offset is None:
            self._offset = spot(view, self.predicate, self.thing)
        return place(view, self.predicate, self.thing, self._offset)

    def _way_out(self, view: View) -> Array | None:
        """Where to carry the object before it goes up, because something hangs over it; None: nothing."""
        points, own = view.others(self.thing), view.points(self.thing)
        pose = view.pose(self.thing)
        radius = float(np.linalg.norm((own - pose.position)[:, :2], axis=1).max()) + WAY_OUT
        high = points[points[:, 2] > own[:, 2].max() + 0.005]
        above_hand = points[points[:, 2] > view.grip[2] + 0.03]

        def count(shift: Array) -> int:
            over = np.linalg.norm(high[:, :2] - pose.position[:2] - shift, axis=1) < radius
            local = (above_hand - view.grip - np.append(shift, 0.0)) @ view.hand
            palm = (np.abs(local[:, 0]) < PALM_HALF[0] + WAY_OUT) & (
                np.abs(local[:, 1]) < PALM_HALF[1] + WAY_OUT
            )
            return int(over.sum() + palm.sum())

        if not count(np.zeros(2)):
            return None
        shifts = [
            distance * np.array([np.cos(angle), np.sin(angle)])
            for distance in (0.04, 0.07, 0.1, 0.13, 0.16)
            for angle in np.arange(16) * np.pi / 8
        ]
        best = min(shifts, key=lambda shift: (count(shift) > 0, float(np.linalg.norm(shift)), count(shift)))
        return pose.position + np.append(best, 0.0)
