"""What policies with `needs_privileged` see of LIBERO's simulator: `policies.truth` of a moment.

Constants are read once a reset, because a reset places fixtures; a moment costs well below a millisecond.
"""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from policies.truth import (
    BINARY,
    SURROUNDINGS,
    UNARY,
    Body,
    Boxes,
    Joint,
    Layout,
    Pose,
    Predicate,
    Region,
    Truth,
)

ROBOT = ("robot0_", "gripper0_", "mount0_")  # prefixes of robosuite's bodies
KINDS = {int(mujoco.mjtJoint.mjJNT_SLIDE): "slide", int(mujoco.mjtJoint.mjJNT_HINGE): "hinge"}


class Privileged:
    """Reads the truth of one environment.

    Non-obvious behaviors:
        Poses are those of a snapshot, which are as old as every other sensor's; so are the joints', which
        are worked out from the poses of their bodies.
    """

    def __init__(self, env: Any) -> None:
        """`env` is LIBERO's problem class, after its construction."""
        self._env = env
        self._model = env.sim.model._model
        self._grip = self._model.site(env.robots[0].gripper.important_sites["grip_site"]).id
        self._fingers = [self._model.body(f"gripper0_{side}finger").id for side in ("left", "right")]
        self.layout = self._read_layout()
        self._body_ids = {name: self._model.body(name).id for name in self.layout.bodies}
        self._site_ids = {name: self._model.site(name).id for name in self.layout.regions}

    def look(self, poses: Any) -> Truth:
        """Return the truth of a moment, given a snapshot's `poses`."""

        def body_pose(i: int) -> Pose:
            return Pose(poses["xpos"][i].copy(), poses["xmat"][i].reshape(3, 3).copy())

        def site_pose(i: int) -> Pose:
            return Pose(poses["site_xpos"][i].copy(), poses["site_xmat"][i].reshape(3, 3).copy())

        left, right = (body_pose(i).position for i in self._fingers)
        return Truth(
            layout=self.layout,
            bodies={name: body_pose(i) for name, i in self._body_ids.items()},
            regions={name: site_pose(i) for name, i in self._site_ids.items()},
            joints={
                name: self._value(joint, self._body_ids[joint.body], body_pose)
                for name, joint in self.layout.joints.items()
            },
            grip=site_pose(self._grip),
            gripper=float(np.linalg.norm(left - right)),
        )

    def _value(self, joint: Joint, body: int, pose: Any) -> float:
        """How far the body has moved from where the model has it at 0, along or about the axis."""
        model = self._model
        parent, moved = pose(int(model.body_parentid[body])), pose(body)
        at_zero = parent.rotation @ _rotation(model.body_quat[body])
        if joint.kind == "slide":
            origin = parent.position + parent.rotation @ model.body_pos[body]
            return float((moved.position - origin) @ (at_zero @ joint.axis))
        turn = at_zero.T @ moved.rotation  # a rotation about the axis
        sine = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        return float(np.arctan2(sine @ joint.axis, np.trace(turn) - 1.0))

    def _read_layout(self) -> Layout:
        env, model = self._env, self._model
        roots = {name: model.body(body).name for name, body in env.obj_body_id.items()}
        thing_of = {body: name for name, body in env.obj_body_id.items()}
        bodies: dict[str, Body] = {}
        for i in range(1, model.nbody):
            if model.body(i).name.startswith(ROBOT):
                continue
            thing_of.setdefault(i, thing_of.get(int(model.body_parentid[i]), SURROUNDINGS))
            bodies[model.body(i).name] = Body(thing_of[i], self._boxes(i))
        joints = {
            model.joint(i).name: self._joint(i, bodies)
            for i in range(model.njnt)
            if model.jnt_type[i] in KINDS and model.body(model.jnt_bodyid[i]).name in bodies
        }
        return Layout(
            goal=tuple(_predicate(state) for state in env.parsed_problem["goal_state"]),
            roots=roots,
            movable=frozenset(env.objects_dict),
            bodies=bodies,
            regions={
                name: Region(
                    site.parent_name,
                    np.array(site.size, dtype=np.float64),
                    site.joints[0] if site.joints else None,
                )
                for name, site in env.object_sites_dict.items()
            },
            joints=joints,
        )

    def _boxes(self, body: int) -> Boxes:
        model = self._model
        geoms = [
            g
            for g in range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body])
            if (model.geom_contype[g] or model.geom_conaffinity[g])
            and model.geom_type[g] != mujoco.mjtGeom.mjGEOM_PLANE
        ]
        rotations = np.array([_rotation(model.geom_quat[g]) for g in geoms]).reshape(-1, 3, 3)
        bounds = model.geom_aabb[geoms].reshape(-1, 6)  # centre and half sizes in the geom's frame
        centres = model.geom_pos[geoms].reshape(-1, 3) + np.einsum("nij,nj->ni", rotations, bounds[:, :3])
        return Boxes(centres, rotations, bounds[:, 3:].copy())

    def _joint(self, i: int, bodies: dict[str, Body]) -> Joint:
        model = self._model
        body = model.body(model.jnt_bodyid[i]).name
        fixture = self._env.get_object(bodies[body].thing)
        articulation = fixture.object_properties["articulation"]
        ranges = {
            name: (min(values), max(values))
            for name in UNARY
            if (values := articulation.get(f"default_{name}_ranges"))
        }
        kind, axis, anchor = KINDS[int(model.jnt_type[i])], model.jnt_axis[i].copy(), model.jnt_pos[i].copy()
        low, high = (float(value) for value in model.jnt_range[i])
        outward = axis * (1.0 if high > -low else -1.0)
        boxes = bodies[body].boxes
        reach = np.einsum("nj,nij->ni", boxes.halves_N3, np.abs(boxes.rotations_N33))
        if kind == "slide":
            far = boxes.centres_N3 @ outward + reach @ np.abs(outward)
        else:
            arm = boxes.centres_N3 - anchor
            along = arm @ axis
            if "turnon" in ranges:
                far = along + reach @ np.abs(axis)
            else:
                far = np.linalg.norm(arm - np.outer(along, axis), axis=1)
        return Joint(body, kind, axis, anchor, (low, high), ranges, int(np.argmax(far)))


def _predicate(state: list[str]) -> Predicate:
    name, *arguments = state
    expected = {**dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2)}
    if expected.get(name.lower()) != len(arguments):
        raise ValueError(f"the goal {state} must be one of {', '.join(expected)} with its one or two names")
    return Predicate(name.lower(), tuple(arguments))


def _rotation(quat: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)
