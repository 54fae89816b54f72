"""Simulator truth as data: the goal, and the shapes, poses and joints of everything that is not the robot.

Lengths are in metres, angles in radians; rotations are matrices whose columns are the axes of the thing in
the frame named. N boxes.

A thing is an object or a fixture of the task, under the name that the goal uses (`plate_1`,
`wooden_cabinet_1`), or the furniture around them (`SURROUNDINGS`). A thing consists of one or more bodies; a
joint moves one body of it. Names of the simulator's geoms do not occur.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SURROUNDINGS = "surroundings"  # tables and walls
UNARY = ("open", "close", "turnon", "turnoff")
BINARY = ("on", "in")


@dataclass(frozen=True)
class Predicate:
    """One fact that the goal asks for: all of them must hold at the same time."""

    name: str  # of UNARY or BINARY
    arguments: tuple[str, ...]  # things or regions

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.arguments)})"


@dataclass(frozen=True)
class Boxes:
    """What collides, as boxes in the frame of a body; other shapes are given by the box around them."""

    centres_N3: Array
    rotations_N33: Array
    halves_N3: Array


@dataclass(frozen=True)
class Body:
    thing: str
    boxes: Boxes


@dataclass(frozen=True)
class Joint:
    """A slide (metres) or a hinge (radians) of a fixture.

    Attributes:
        axis: unit vector in the frame of the body that moves; a positive value moves along it, or turns
            right-handed about it.
        anchor: a point on a hinge's axis, in the frame of the body that moves.
        ranges: predicate to the values (low, high) at which LIBERO's own sampler sets it; see `holds`.
        handle: index of the box of `body` to pull or to turn: of a slide the one farthest out, of a hinge
            the one farthest from its axis, and of a knob the one that stands out along its axis.
    """

    body: str
    kind: str  # "slide" or "hinge"
    axis: Array
    anchor: Array
    limits: tuple[float, float]
    ranges: Mapping[str, tuple[float, float]]
    handle: int

    def holds(self, predicate: str, value: float) -> bool:
        """Decide as LIBERO does (envs/objects/articulated_objects.py) whether `value` is open, on, ..."""
        low, high = self.ranges[predicate]
        upwards = self.limits[1] > -self.limits[0]  # opens, or turns on, towards positive values
        if predicate == "open":
            return value > low if upwards else value < high
        if predicate == "close":
            return value < high if upwards else value > low
        return value >= low if predicate == "turnon" else value < high


@dataclass(frozen=True)
class Region:
    """A place that the goal can name: a box inside or on a thing, or on the table (`thing` None)."""

    thing: str | None
    halves: Array
    joint: str | None  # the drawer that carries it


@dataclass(frozen=True)
class Layout:
    """What does not change during an episode."""

    goal: tuple[Predicate, ...]
    roots: Mapping[str, str]  # thing to the body whose pose is the thing's
    movable: frozenset[str]  # things that can be carried
    bodies: Mapping[str, Body]
    regions: Mapping[str, Region]
    joints: Mapping[str, Joint]


@dataclass(frozen=True)
class Pose:
    position: Array  # (3,), of the world
    rotation: Array  # (3, 3), to the world's axes


@dataclass(frozen=True)
class Truth:
    """One moment; everything is in the world's frame.

    Attributes:
        bodies, regions: the pose of each.
        joints: the value of each.
        grip: the point between the fingertips; its x axis is the one along which the fingers close, its z
            axis points out of the hand.
        gripper: distance of the two fingers in metres, 0.08 open.
    """

    layout: Layout
    bodies: Mapping[str, Pose]
    regions: Mapping[str, Pose]
    joints: Mapping[str, float]
    grip: Pose
    gripper: float
