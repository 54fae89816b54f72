"""The goal as the expert reads it: which facts hold, and what to do next."""

import numpy as np

from policies.oracle.view import View, plane
from policies.truth import Layout, Predicate

ON_RADIUS = 0.03  # LIBERO's, between origins (ObjectState.check_ontop)
ON_REGION_HEIGHT = 0.10  # LIBERO's (SiteObject.under)
ON_HEIGHT = 0.12  # between origins; LIBERO asks for contact instead
ORDER = ("open", "turnon", "turnoff", "in", "on", "close")


def holds(view: View, predicate: Predicate) -> bool:
    """Decide as LIBERO does, but for contacts, which `View` does not have."""
    layout = view.truth.layout
    thing = predicate.arguments[0]
    if predicate.name not in ("in", "on"):
        joints = joints_of(layout, thing)
        decide = any if predicate.name in ("open", "turnon") else all
        return decide(layout.joints[j].holds(predicate.name, view.truth.joints[j]) for j in joints)
    target = predicate.arguments[1]
    position, pose = view.pose(thing).position, view.pose(target)
    if target not in layout.regions:
        height = position[2] - pose.position[2]
        return bool(plane(position - pose.position) < ON_RADIUS and 0.0 <= height < ON_HEIGHT)
    halves = layout.regions[target].halves
    if predicate.name == "in":
        size = np.abs(pose.rotation @ halves)
        inside = np.abs(position - pose.position) < size + np.array([0.0, 0.0, 0.01])
        return bool(inside.all() and position[2] < pose.position[2] + size[2])
    local = pose.rotation @ (position - pose.position)
    high = halves[2] - 0.005 < local[2] < halves[2] + ON_REGION_HEIGHT
    return bool(high and (np.abs(local[:2]) < halves[:2]).all())


def joints_of(layout: Layout, name: str) -> list[str]:
    """The joints of a fixture, or the one of a region that a drawer carries."""
    if name in layout.regions:
        joint = layout.regions[name].joint
        return [] if joint is None else [joint]
    return [j for j, joint in layout.joints.items() if layout.bodies[joint.body].thing == name]


def next_step(view: View) -> Predicate | None:
    """The first fact that does not hold and that nothing else must precede; None when all hold.

    A drawer is opened before something is put into it, and what carries other objects is placed before them.
    """
    layout = view.truth.layout
    missing = [p for p in layout.goal if not holds(view, p)]
    if not missing:
        return None
    moved = {p.arguments[0] for p in missing if p.name in ("in", "on")}

    def rank(predicate: Predicate) -> tuple[int, int]:
        waits = len(predicate.arguments) == 2 and predicate.arguments[1] in moved
        return ORDER.index(predicate.name), int(waits)

    first = min(missing, key=rank)
    waiting = [p for p in missing if p.name in ("in", "on")]
    if first.name in ("in", "on"):
        first = min(waiting, key=lambda p: int(p.arguments[1] in moved))
        target = first.arguments[1]
        if target in layout.regions and (joint := layout.regions[target].joint) is not None:
            way_in = Predicate("open", (target,))
            if not wide_open(view, joint):
                return way_in
    return first


def wide_open(view: View, joint: str) -> bool:
    """Whether a drawer is open far enough to reach into: most of its way."""
    low, high = view.truth.layout.joints[joint].limits
    farthest = high if high > -low else low
    return view.truth.joints[joint] / farthest > 0.8
