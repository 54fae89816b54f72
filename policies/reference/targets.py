"""What an auxiliary loss asks the network to see: where the things lie that the goal names.

The targets of a moment are `NUM_TARGETS` numbers in metres, along the world's axes: for each of the first
`ERRANDS` errands where its subject is and where that must go, both from the grip site; then the grip site
itself. NaN where there is no such thing. A predicate is an errand; one that puts something into a drawer is
two, because the drawer's handle must be found as well. The subject of `open` or `turnon` is the box to pull
or to turn.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from policies.oracle.goals import joints_of
from policies.truth import Predicate, Truth

Array = NDArray[np.float64]

ERRANDS = 2
NUM_TARGETS = 3 * (2 * ERRANDS + 1)


def targets(truth: Truth) -> Array:
    """Read the targets (NUM_TARGETS,) of a moment."""
    rows = np.full((2 * ERRANDS + 1, 3), np.nan)
    errands = [errand for predicate in truth.layout.goal for errand in _errands(truth, predicate)]
    for i, errand in enumerate(errands[:ERRANDS]):
        for j, position in enumerate(errand):
            rows[2 * i + j] = position - truth.grip.position
    rows[-1] = truth.grip.position
    return rows.ravel()


def _errands(truth: Truth, predicate: Predicate) -> Iterator[list[Array]]:
    """Yield the subject's position, with the target's where there is one."""
    if predicate.name not in ("in", "on"):
        yield [_handle(truth, joints_of(truth.layout, predicate.arguments[0])[0])]
        return
    yield [_position(truth, name) for name in predicate.arguments]
    region = truth.layout.regions.get(predicate.arguments[1])
    if region is not None and region.joint is not None:
        yield [_handle(truth, region.joint)]


def _handle(truth: Truth, name: str) -> Array:
    joint = truth.layout.joints[name]
    body, boxes = truth.bodies[joint.body], truth.layout.bodies[joint.body].boxes
    return body.position + body.rotation @ boxes.centres_N3[joint.handle]


def _position(truth: Truth, name: str) -> Array:
    if name in truth.regions:
        return truth.regions[name].position
    return truth.bodies[truth.layout.roots[name]].position
