"""A moment as the skills see it: points on the surfaces of things, sizes, and how high what stands where.

All in the world's frame, metres; N points.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from policies.truth import SURROUNDINGS, Boxes, Layout, Pose, Truth

Array = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])
SPACING = 0.01  # metres between points on what can be carried
COARSE = 0.02  # ... on fixtures
WIDE = 0.05  # ... on tables and walls


class Shapes:
    """Points on the surfaces of all bodies, in their frames; worked out once an episode."""

    def __init__(self, layout: Layout) -> None:
        self.bodies: dict[str, list[str]] = {name: [] for name in (*layout.roots, SURROUNDINGS)}
        self.points: dict[str, Array] = {}
        for name, body in layout.bodies.items():
            self.bodies[body.thing].append(name)
            spacing = SPACING if body.thing in layout.movable else COARSE
            self.points[name] = surface(body.boxes, WIDE if body.thing == SURROUNDINGS else spacing)


@dataclass
class View:
    truth: Truth
    shapes: Shapes

    @property
    def grip(self) -> Array:
        return self.truth.grip.position

    @property
    def hand(self) -> Array:
        return self.truth.grip.rotation

    def pose(self, name: str) -> Pose:
        """The pose of a thing or a region."""
        if name in self.truth.regions:
            return self.truth.regions[name]
        return self.truth.bodies[self.truth.layout.roots[name]]

    def points(self, thing: str) -> Array:
        return self.body_points(self.shapes.bodies[thing])

    def body_points(self, bodies: Iterable[str]) -> Array:
        poses = self.truth.bodies
        parts = [poses[b].position + self.shapes.points[b] @ poses[b].rotation.T for b in bodies]
        return np.concatenate(parts) if parts else np.zeros((0, 3))

    def others(self, *excluded: str) -> Array:
        """Points of everything but these things."""
        return np.concatenate([self.points(name) for name in self.shapes.bodies if name not in excluded])

    def bottom(self, thing: str) -> float:
        """How far the lowest point of a thing lies below its origin."""
        return float(self.pose(thing).position[2] - self.points(thing)[:, 2].min())

    def box(self, joint: str) -> tuple[Array, Array, Array]:
        """The handle or knob of a joint: centre (3,), axes (3, 3), half sizes (3,)."""
        what = self.truth.layout.joints[joint]
        pose, boxes = self.truth.bodies[what.body], self.truth.layout.bodies[what.body].boxes
        centre = pose.position + pose.rotation @ boxes.centres_N3[what.handle]
        return centre, pose.rotation @ boxes.rotations_N33[what.handle], boxes.halves_N3[what.handle]

    def axis(self, joint: str) -> Array:
        """The joint's axis, pointing the way in which it opens or turns on."""
        what = self.truth.layout.joints[joint]
        low, high = what.limits
        sign = 1.0 if high > -low else -1.0
        return sign * (self.truth.bodies[what.body].rotation @ what.axis)

    def anchor(self, joint: str) -> Array:
        what = self.truth.layout.joints[joint]
        pose = self.truth.bodies[what.body]
        return pose.position + pose.rotation @ what.anchor


def surface(boxes: Boxes, spacing: float) -> Array:
    """Points (N, 3) on the faces of boxes, at most `spacing` apart."""
    parts = [np.zeros((0, 3))]
    for centre, rotation, halves in zip(boxes.centres_N3, boxes.rotations_N33, boxes.halves_N3, strict=True):
        counts = np.ceil(2 * halves / spacing).astype(int) + 1
        grid = np.meshgrid(*(np.linspace(-h, h, max(2, n)) for h, n in zip(halves, counts, strict=True)))
        local = np.stack([axis.ravel() for axis in grid], axis=1)
        outside = (np.abs(np.abs(local) - halves) < 1e-9).any(axis=1)
        parts.append(centre + local[outside] @ rotation.T)
    return np.concatenate(parts)


def highest_between(points: Array, start: Array, end: Array, radius: float) -> float:
    """The height of the highest point within `radius` of the way from `start` to `end`, seen from above."""
    way = (end - start)[:2]
    relative = points[:, :2] - start[:2]
    share = np.clip(relative @ way / max(float(way @ way), 1e-9), 0.0, 1.0)
    near = np.linalg.norm(relative - share[:, None] * way, axis=1) < radius
    return float(points[near, 2].max()) if near.any() else -np.inf


def between(points: Array, start: Array, end: Array, radius: float) -> bool:
    """Whether a point lies within `radius` of the straight way from `start` to `end`."""
    way = end - start
    share = np.clip((points - start) @ way / max(float(way @ way), 1e-9), 0.0, 1.0)
    return bool((np.linalg.norm(points - start - share[:, None] * way, axis=1) < radius).any())


def plane(vector: Array) -> float:
    """Length of a vector seen from above."""
    return float(np.hypot(vector[0], vector[1]))


def turn(wanted: Array, now: Array) -> Array:
    """The axis-angle (3,) in the world that takes orientation `now` to `wanted`."""
    return Rotation.from_matrix(wanted @ now.T).as_rotvec()


def fit_circle(points_N2: Array) -> tuple[Array, float]:
    """Centre (2,) and radius of the circle through points in a plane; points far off it are left out."""
    keep = np.ones(len(points_N2), bool)
    for _ in range(3):
        chosen = points_N2[keep]
        matrix = np.column_stack([2 * chosen, np.ones(len(chosen))])
        solution, *_ = np.linalg.lstsq(matrix, (chosen**2).sum(axis=1), rcond=None)
        centre = solution[:2]
        radius = float(np.sqrt(max(solution[2] + centre @ centre, 1e-9)))
        residual = np.abs(np.linalg.norm(points_N2 - centre, axis=1) - radius)
        keep = residual < max(0.006, float(np.median(residual)))
    return centre, radius
