"""Made-up worlds of boxes for the expert's tests: a table's worth of objects, and a cabinet with a drawer."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from policies.oracle.view import Shapes, View
from policies.truth import Body, Boxes, Joint, Layout, Pose, Predicate, Region, Truth

Array = NDArray[np.float64]

POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # fingers close along y
GRIP = np.array([-0.2, 0.0, 1.17])


def box(*halves: float, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Boxes:
    return Boxes(np.array([at]), np.eye(3)[None], np.array([halves]))


def ring(radius: float, height: float, boxes: int = 24) -> Boxes:
    """A wall of thin boxes around the z axis, from 0 up to `height`."""
    angles = np.linspace(0.0, 2 * np.pi, boxes, endpoint=False)
    rotations = [[[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] for a in angles]
    centres = [[radius * np.cos(a), radius * np.sin(a), height / 2] for a in angles]
    halves = [[0.001, radius * np.pi / boxes, height / 2]] * boxes
    return Boxes(np.array(centres), np.array(rotations), np.array(halves))


DRAWER = Joint(
    body="cabinet_1_drawer",
    kind="slide",
    axis=np.array([0.0, 1.0, 0.0]),
    anchor=np.zeros(3),
    limits=(-0.16, 0.01),
    ranges={"open": (-0.16, -0.14), "close": (0.0, 0.005)},
    handle=1,
)


def cabinet() -> tuple[dict[str, Body], dict[str, Region]]:
    """Its drawer opens towards -y; the handle is the second box."""
    drawer = Boxes(
        np.array([[0.0, -0.1, 0.1], [0.0, -0.13, 0.1]]),
        np.stack([np.eye(3)] * 2),
        np.array([[0.1, 0.003, 0.03], [0.044, 0.008, 0.008]]),
    )
    bodies = {
        "cabinet_1_main": Body("cabinet_1", box(0.11, 0.09, 0.01, at=(0.0, 0.0, 0.2))),
        "cabinet_1_drawer": Body("cabinet_1", drawer),
    }
    return bodies, {"cabinet_1_region": Region("cabinet_1", np.array([0.08, 0.08, 0.03]), "cabinet_1_level")}


def world(
    objects: Mapping[str, tuple[Boxes, Array]],
    goal: tuple[Predicate, ...] = (),
    *,
    drawer: float | None = None,
    grip: Array = GRIP,
    hand: Array = POINTING_DOWN,
    gripper: float = 0.08,
) -> Truth:
    """Objects by name, with boxes and position, and with `drawer` a cabinet whose drawer has that value."""
    bodies = {f"{name}_main": Body(name, boxes) for name, (boxes, _) in objects.items()}
    poses = {f"{name}_main": Pose(np.asarray(at), np.eye(3)) for name, (_, at) in objects.items()}
    roots = {name: f"{name}_main" for name in objects}
    regions: dict[str, Region] = {}
    region_poses: dict[str, Pose] = {}
    joints, values = {}, {}
    if drawer is not None:
        extra, regions = cabinet()
        bodies |= extra
        origin = np.array([0.0, 0.3, 0.9])
        moved = origin + drawer * DRAWER.axis
        poses |= {"cabinet_1_main": Pose(origin, np.eye(3)), "cabinet_1_drawer": Pose(moved, np.eye(3))}
        roots["cabinet_1"] = "cabinet_1_main"
        region_poses["cabinet_1_region"] = Pose(moved + np.array([0.0, 0.0, 0.1]), np.eye(3))
        joints, values = {"cabinet_1_level": DRAWER}, {"cabinet_1_level": drawer}
    layout = Layout(goal, roots, frozenset(objects), bodies, regions, joints)
    return Truth(layout, poses, region_poses, values, Pose(grip, hand), gripper)


def look(truth: Truth) -> View:
    return View(truth, Shapes(truth.layout))


def moved(truth: Truth, thing: str, position: Array) -> Truth:
    """The same moment with a thing elsewhere."""
    root = truth.layout.roots[thing]
    pose = Pose(np.asarray(position, dtype=np.float64), truth.bodies[root].rotation)
    return replace(truth, bodies={**truth.bodies, root: pose})


def with_hand(truth: Truth, grip: Array, hand: Array | None = None, gripper: float | None = None) -> Truth:
    return replace(
        truth,
        grip=Pose(grip, truth.grip.rotation if hand is None else hand),
        gripper=truth.gripper if gripper is None else gripper,
    )
