"""Where an object goes: on a thing, on a region, into a container."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.oracle.grasps import kind_of
from policies.oracle.view import View, highest_between, plane
from policies.truth import Predicate

Array = NDArray[np.float64]

PRESS = 0.006  # metres below rest: contact ends the way, not the aim
BELOW_RIM = 0.03  # how far an object is lowered into a container before it is dropped
FINGERS, FINGER_CLEARANCE = 0.03, 0.02  # metres around and below the grip that stay clear on the way
GRID = np.linspace(-0.9, 0.9, 7)


@dataclass(frozen=True)
class Place:
    """Where the object's origin is let go, and the yaw (radians) to turn the object by on the way."""

    origin: Array
    yaw: float = 0.0


def spot(view: View, predicate: Predicate, thing: str) -> Array:
    """Choose where in its target, as an offset (2,) from the target's middle, an object stands free.

    Other objects in the target are kept clear of; in an empty one the middle is best.
    """
    target = predicate.arguments[1]
    layout = view.truth.layout
    if target not in layout.regions:
        return np.zeros(2)
    region, pose = layout.regions[target], view.pose(target)
    neighbours = [
        view.points(name) for name in layout.movable if name != thing and _is_near(view, name, target)
    ]
    if region.joint is not None:  # a drawer: its walls, and what hangs over it
        drawer = layout.joints[region.joint].body
        walls = view.body_points([drawer])
        neighbours.append(walls[walls[:, 2] > walls[:, 2].max() - 0.03])
        owner = view.body_points(b for b in view.shapes.bodies[layout.bodies[drawer].thing] if b != drawer)
        neighbours.append(owner[owner[:, 2] > walls[:, 2].max()])
    if not neighbours:
        return np.zeros(2)
    points = np.concatenate(neighbours)[:, :2]
    if not len(points):
        return np.zeros(2)
    halves = np.abs(pose.rotation @ region.halves)[:2]
    radius = _radius(view, thing)
    best, least = np.zeros(2), np.inf
    for x in GRID:
        for y in GRID:
            offset = np.array([x, y]) * np.maximum(halves - 0.012, 0.0)
            clear = float(np.linalg.norm(points - pose.position[:2] - offset, axis=1).min())
            cost = 3.0 * max(0.0, radius + 0.02 - clear) + 0.3 * float(np.linalg.norm(offset))
            if cost < least:
                best, least = offset, cost
    return best


def place(view: View, predicate: Predicate, thing: str, offset: Array) -> Place:
    """Work out where the object's origin must go, from where its target is now."""
    target = predicate.arguments[1]
    pose, layout = view.pose(target), view.truth.layout
    middle = pose.position + np.append(offset, 0.0)
    bottom = view.bottom(thing)
    if kind_of(thing) == "wine_bottle" and target.startswith("wine_rack"):
        # the shelf slopes; upright and 50 mm up its slope, the bottle touches it near the region's middle
        return Place(pose.position + 0.05 * pose.rotation[:, 2])
    if target in layout.regions and layout.regions[target].thing is None:
        middle[2] = pose.position[2] + 0.005 + bottom - PRESS  # a mark on the table, 5 mm below it
        return Place(middle)
    around = view.others(thing)
    around = around[np.linalg.norm(around[:, :2] - middle[:2], axis=1) < 0.12]
    close = np.linalg.norm(around[:, :2] - middle[:2], axis=1) < 0.03
    below = around[close & (around[:, 2] < pose.position[2] + 0.03)]
    floor = float(below[:, 2].max()) if len(below) else float(pose.position[2])
    middle[2] = floor + bottom - PRESS
    if predicate.name == "in":
        owner = layout.regions[target].thing
        walls = view.points(owner) if owner else around
        if (joint := layout.regions[target].joint) is not None:
            walls = view.body_points([layout.joints[joint].body])
        rim = float(walls[np.linalg.norm(walls[:, :2] - middle[:2], axis=1) < 0.11][:, 2].max(initial=floor))
        middle[2] = max(middle[2], rim - BELOW_RIM + bottom)
    return Place(middle, _yaw_into(view, predicate, thing))


def _yaw_into(view: View, predicate: Predicate, thing: str) -> float:
    """Turn a book so that its long side lies along its compartment's."""
    if not kind_of(thing).endswith("book") or predicate.name != "in":
        return 0.0
    target = predicate.arguments[1]
    halves = np.abs(view.pose(target).rotation @ view.truth.layout.regions[target].halves)[:2]
    wanted = 0.0 if halves[0] > halves[1] else np.pi / 2
    points = view.points(thing)[:, :2]
    values, vectors = np.linalg.eigh(np.cov((points - points.mean(axis=0)).T))
    long = vectors[:, int(np.argmax(values))]
    error = wanted - float(np.arctan2(long[1], long[0]))
    return float((error + np.pi / 2) % np.pi - np.pi / 2)


def _radius(view: View, thing: str) -> float:
    points = view.points(thing)
    return float(np.percentile(np.linalg.norm((points - view.pose(thing).position)[:, :2], axis=1), 90))


def _is_near(view: View, name: str, target: str) -> bool:
    owner = view.truth.layout.regions[target].thing
    return name != owner and plane(view.pose(name).position - view.pose(target).position) < 0.25


def carry_height(view: View, thing: str, place_: Place, points: Array) -> float:
    """The height of the object's origin at which it and the hand travel, clear of `points` on the way."""
    start = view.pose(thing).position
    radius = min(_radius(view, thing), 0.07) + 0.015
    obstacle = highest_between(points, start, place_.origin, radius)
    over = view.grip + place_.origin - start
    fingers = highest_between(points, view.grip, over, FINGERS) + FINGER_CLEARANCE + start[2] - view.grip[2]
    return max(obstacle + view.bottom(thing) + 0.03, fingers, float(place_.origin[2]) + 0.03)
