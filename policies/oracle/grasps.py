"""Where to take hold of an object: a table of grasps by kind, and the search for the best one here.

A grasp is a point for the grip site and an orientation of the hand, kept in the object's frame, so that it
follows the object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.oracle.hand import from_above, touches, touches_palm
from policies.oracle.view import UP, View, fit_circle, turn
from policies.truth import Pose

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rim:
    """Take the wall of something round from above, one finger inside."""

    depth: float  # of the grip below the rim, metres
    inset: float = 0.004  # from the rim's fitted circle inwards


@dataclass(frozen=True)
class Across:
    """Take something narrow from above between both fingers."""

    from_top: float = 0.030  # of the grip below the top: what sticks out farther touches the palm
    offsets: tuple[float, ...] = (0.0, 0.015, -0.015, 0.03, -0.03)  # along the object, from its middle


BOWL, MUG = Rim(0.020), Rim(0.022)
GRASPS: dict[str, Rim | Across] = {
    "akita_black_bowl": BOWL,
    "white_bowl": BOWL,
    "plate": Rim(0.006),
    "porcelain_mug": MUG,
    "red_coffee_mug": MUG,
    "white_yellow_mug": MUG,
    **dict.fromkeys(
        (
            *("alphabet_soup", "bbq_sauce", "black_book", "butter", "chocolate_pudding", "cream_cheese"),
            *("ketchup", "milk", "new_salad_dressing", "orange_juice", "salad_dressing"),
            *("tomato_sauce", "wine_bottle", "yellow_book"),
        ),
        Across(),
    ),
    "moka_pot": Across(0.022),  # beside the lid's knob, which would touch the palm
}

MAX_WIDTH = 0.072  # the opened fingers are 77 mm apart
LEAST_HEIGHT = 0.010  # of the grip above the object's bottom: the fingertips reach below it
TRAVEL = 0.08  # the straight way to a grasp
TILTS_DEG = (0.0, 25.0, -25.0, 40.0, -40.0)
SLICE = 0.013  # half the height and half the breadth of what the fingers touch


@dataclass(frozen=True)
class Grasp:
    """In the object's frame."""

    point: Array
    hand: Array

    def at(self, pose: Pose) -> tuple[Array, Array]:
        """The grip's position and the hand's orientation in the world."""
        return pose.position + pose.rotation @ self.point, pose.rotation @ self.hand


@dataclass(frozen=True)
class Candidate:
    point: Array  # in the world
    hand: Array
    cost: float  # in metres of an object's width


def kind_of(thing: str) -> str:
    """`plate_1` is a `plate`."""
    return thing.rstrip("0123456789").rstrip("_")


def choose_grasp(view: View, thing: str, failed: Sequence[Grasp] = ()) -> Grasp | None:
    """Search the grasps of an object; None where it has none, as when it lies on its side.

    Args:
        failed: grasps that did not work, to be taken again only when everything else is worse.

    Raises:
        ValueError: the table has no grasp for this kind.
    """
    if (how := GRASPS.get(kind_of(thing))) is None:
        raise ValueError(f"the oracle knows no grasp for {thing}, but for {', '.join(GRASPS)}")
    points = view.points(thing)
    middle = points.mean(axis=0)
    near = view.others(thing)
    near = near[np.linalg.norm(near - middle, axis=1) < 0.35]
    match how:
        case Rim():
            candidates = _rim(points, how)
        case Across():
            candidates = _across(points, how)
    pose = view.pose(thing)
    best: Candidate | None = None
    lost = [grasp.at(pose) for grasp in failed]
    for candidate in candidates:
        cost = candidate.cost + 0.02 * float(np.linalg.norm(turn(candidate.hand, view.hand)))
        cost += 0.1 * sum(_alike(candidate, point, hand) for point, hand in lost)
        if best is not None and cost >= best.cost:
            continue
        cost += 0.02 * min(touches(near, candidate.point, candidate.hand, TRAVEL), 20)
        cost += 0.01 * min(touches_palm(points, candidate.point, candidate.hand), 20)
        if best is None or cost < best.cost:
            best = Candidate(candidate.point, candidate.hand, cost)
    if best is None:
        return None
    return Grasp(pose.rotation.T @ (best.point - pose.position), pose.rotation.T @ best.hand)


def _alike(candidate: Candidate, point: Array, hand: Array) -> bool:
    near = float(np.linalg.norm(candidate.point - point)) < 0.02
    return near and float(np.linalg.norm(turn(candidate.hand, hand))) < 0.3


def rim_of(points: Array) -> tuple[Array, float]:
    """Centre (3,) and radius of the upper rim of something round."""
    top = points[:, 2].max()
    centre, radius = fit_circle(points[points[:, 2] > top - 0.006][:, :2])
    return np.append(centre, top), radius


def _rim(points: Array, how: Rim) -> list[Candidate]:
    centre, radius = rim_of(points)
    candidates = []
    for angle_deg in np.arange(0.0, 360.0, 15.0):
        outward = np.array([np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg)), 0.0])
        for tilt in TILTS_DEG:
            point = centre + (radius - how.inset) * outward - how.depth * UP
            candidates.append(Candidate(point, from_above(float(angle_deg), tilt), abs(tilt) * 1e-3))
    return candidates


def _across(points: Array, how: Across) -> list[Candidate]:
    top, bottom = points[:, 2].max(), points[:, 2].min()
    upper = points[points[:, 2] > top - how.from_top - SLICE]
    middle = (upper.max(axis=0) + upper.min(axis=0)) / 2
    middle[2] = max(bottom + LEAST_HEIGHT, top - how.from_top)
    candidates = []
    for yaw_deg in np.arange(0.0, 180.0, 5.0):
        for tilt in TILTS_DEG:
            hand = from_above(float(yaw_deg), tilt)
            for offset in how.offsets:
                centre = middle + offset * np.cross(UP, hand[:, 0])
                local = (points - centre) @ hand
                touched = local[(np.abs(local[:, 1]) < SLICE) & (np.abs(local[:, 2]) < SLICE)]
                if len(touched) < 2:
                    continue
                low, high = touched[:, 0].min(), touched[:, 0].max()
                if high - low > MAX_WIDTH:
                    continue
                point = centre + hand[:, 0] * (low + high) / 2
                candidates.append(Candidate(point, hand, high - low + abs(tilt) * 1e-3 + abs(offset) * 2.0))
    return candidates
