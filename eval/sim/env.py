"""LIBERO as pure episodes: one environment per scene, cheap exact resets, cameras rendered only on demand.

Conventions are openpi's (examples/libero/main.py), the protocol that published numbers follow.

Non-obvious behaviors:
    * Upstream's `reset()` samples fixture poses from the global NumPy generator and `set_init_state` does not
      restore them; seeding once per task therefore makes an episode depend on its predecessors. Seeding
      `paired` seeds every reset from the episode's key; `openpi` repeats the drifting order, by replaying the
      draws that came before.
    * LIBERO appends to `object_property_initializers` at every model load, so each of its resets draws more
      numbers than the last. The list is set to the length it has in the reset that is imitated.
    * NumPy's generator is global: one process must not run two of these environments at the same time.
    * An observation is what the sensors sampled in substep 24 of 25 of the control step, not the state after
      it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.sim.perturbed import Perturber, disturbed
from eval.sim.stack import quiet
from eval.sim.tasks import Task
from policies.base import ACTION_DIM, EpisodeKey, Observation
from policies.seeding import SEEDINGS, stable_seed
from policies.truth import Truth

# openpi examples/libero/main.py
CAMERA_SIZE = 256
CAMERAS = {"agentview_image": "agentview", "robot0_eye_in_hand_image": "robot0_eye_in_hand"}
SETTLE_STEPS = 10  # num_steps_wait: objects fall into place
SETTLE_ACTION = np.array([0.0] * 6 + [-1.0])  # LIBERO_DUMMY_ACTION: stand still, gripper open
CONTROL_HZ = 20

# what resets and steps write into a model
MODEL_MEMORY = ("body_pos", "body_quat", "site_rgba", "geom_rgba", "site_size")
# what MuJoCo's scene reads of a moment, for models without tendons, skins and flexes
SCENE_POSES = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
SCENE_COLOURS = ("site_rgba", "geom_rgba")  # LIBERO switches a stove's flame after the sensors have sampled


@dataclass(frozen=True)
class Snapshot:
    """A moment, kept so that a camera can render it later or never: about 50 kB, copied in microseconds."""

    poses: Mapping[str, NDArray[np.float64]]
    colours: Mapping[str, NDArray[np.float32]]
    step: int  # control steps since settling: its sensor noise is drawn for it


class LiberoEnv:
    """One scene's simulator; call `eval.sim.stack.prepare()` first. The module explains `seeding`.

    Construction takes about 1 s, and 1 s more with `render` (a GL context), without which there are no
    images; a reset with its ten settle steps takes 0.15 s, a control step 0.015 s, rendering both cameras
    0.25 s with OSMesa.
    """

    def __init__(self, task: Task, *, seeding: str = "paired", render: bool = True) -> None:
        if seeding not in SEEDINGS:
            raise ValueError(f"seeding must be one of {', '.join(SEEDINGS)}, got {seeding!r}")
        self.task = task
        self.seeding = seeding
        import mujoco
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite.utils.observables import Observable, sensor

        from eval.sim.substeps import Substeps

        with quiet(), _compiled_memory() as compiled:
            self._control = ControlEnv(
                bddl_file_name=task.bddl_file,
                use_camera_obs=False,
                has_offscreen_renderer=False,
                control_freq=CONTROL_HZ,
            )
        self._env = self._control.env
        self._sim = self._env.sim
        self._substeps = Substeps(self._sim)
        self._compiled = {name: compiled[name] for name in MODEL_MEMORY}
        self._initializers = list(self._env.object_property_initializers)
        self._perturber = Perturber(self._env)
        self._perturber.put(task.perturbation)
        self._draws: dict[int, Any] = {}  # openpi seeding: reset count -> generator state after it
        self._drifting_seed: int | None = None
        self._obs: Mapping[str, Any] = {}
        self._privileged_view: Any = None  # of this reset
        self._step = 0
        self._episode: tuple[str | int, ...] = ()  # names what sensor noise is drawn for

        # Snapshots are rendered from it; it is never simulated.
        self._canvas = mujoco.MjData(self._sim.model._model)
        self.snapshot = self._take_snapshot()

        @sensor(modality="snapshot")
        def snapshot(obs_cache: dict[str, Any]) -> NDArray[np.float64]:
            self.snapshot = self._take_snapshot()
            return np.zeros(2)

        self._env.add_observable(Observable("snapshot", snapshot, sampling_rate=CONTROL_HZ))
        self._context = self._open_context() if render else None

    def serve(self, task: Task) -> None:
        """Go on with another task of the same scene; ValueError for one of another scene."""
        if task.scene != self.task.scene:
            raise ValueError(
                f"{task.suite} task {task.task_id} is of another scene than {self.task.suite} task "
                f"{self.task.task_id}; build an environment for it"
            )
        self.task = task
        self._perturber.put(task.perturbation)

    def reset(self, key: EpisodeKey) -> None:
        """Restore the episode's initial state and let it settle.

        Raises ValueError for a key of another task, or an episode without an official initial state.
        """
        if (key.suite, key.task_id) != (self.task.suite, self.task.task_id):
            raise ValueError(
                f"episode {key} was given to the environment of {self.task.suite} task {self.task.task_id}"
            )
        if not 0 <= key.episode < len(self.task.init_states):
            raise ValueError(
                f"episode must be 0 to {len(self.task.init_states) - 1} for {key.suite} task {key.task_id}, "
                f"got {key.episode}"
            )
        if self.seeding == "paired":
            self._seeded_reset(stable_seed("reset", *self.task.start, key.episode, key.seed))
        else:
            self._drifting_reset(key)
        self._episode = (key.suite, key.task_id, key.episode, key.seed)
        self._start(self.task.init_states[key.episode])

    def reset_randomly(self, seed: int, joint_sd: float = 0.02) -> None:
        """Draw placements from `seed`, as no official episode has them, and let them settle.

        The official initial states are draws of the same placement samplers with N(0, 0.02 rad) on the arm's
        joints; `joint_sd` is in radians too.
        """
        self._seeded_reset(seed)
        self._episode = ("random", seed)
        joints = self._env.robots[0]._ref_joint_pos_indexes
        self._sim.data.qpos[joints] += np.random.normal(0.0, joint_sd, len(joints))
        self._start(self.state_vector())

    def step(self, action: NDArray[np.float64]) -> bool:
        """Execute one action (7,) for 1/20 s; return whether the task's goal holds.

        Raises ValueError for a wrong shape or a value that is not finite.
        """
        if np.shape(action) != (ACTION_DIM,) or not np.all(np.isfinite(action)):
            raise ValueError(f"an action is {ACTION_DIM} finite numbers, got {np.asarray(action)!r}")
        self._step += 1
        with self._substeps:
            self._obs, _, success, _ = self._env.step(np.asarray(action, dtype=np.float64))
        return bool(success)

    def observe(self, cameras: Iterable[str] = (), *, privileged: bool = False) -> Observation:
        """Read what the sensors sampled last; only these cameras are rendered.

        Args:
            cameras: keys of `CAMERAS`; images are uint8 (256, 256, 3), rotated by 180 degrees as openpi does.
            privileged: add object poses (`<object>_pos`, `<object>_quat` xyzw) and the grip site
                (`grip_site_pos` (3,), `grip_site_mat` (3, 3)), all in the world frame, and `truth`.
        """
        return Observation(
            images={name: self.render(self.snapshot, name) for name in cameras},
            state=np.concatenate(
                [
                    self._obs["robot0_eef_pos"],
                    quat_to_axis_angle(self._obs["robot0_eef_quat"]),
                    self._obs["robot0_gripper_qpos"],
                ]
            ),
            instruction=self.task.language,
            privileged=self._privileged() if privileged else {},
            truth=self._truth() if privileged else None,
        )

    def render(self, snapshot: Snapshot, camera: str = "agentview_image") -> NDArray[np.uint8]:
        """Render a moment of this episode, uint8 (256, 256, 3), with the task's noise and no other trace."""
        if self._context is None:
            raise RuntimeError("this environment was built with render=False and has no cameras")
        model = self._sim.model
        now = {name: getattr(model, name).copy() for name in SCENE_COLOURS}
        for name, poses in snapshot.poses.items():
            getattr(self._canvas, name)[:] = poses
        for name, colours in snapshot.colours.items():
            getattr(model, name)[:] = colours
        self._context.gl_ctx.make_current()
        image = self._sim.render(camera_name=CAMERAS[camera], width=CAMERA_SIZE, height=CAMERA_SIZE)
        for name, value in now.items():
            getattr(model, name)[:] = value
        moment = (*self._episode, snapshot.step)
        image = disturbed(image, CAMERAS[camera], self.task.perturbation, *moment)
        return np.ascontiguousarray(image[::-1, ::-1])

    @property
    def num_positions(self) -> int:
        """Length of qpos within `state_vector`."""
        return int(self._sim.model.nq)

    def state_vector(self) -> NDArray[np.float64]:
        """Time, qpos and qvel, concatenated: equal vectors are equal moments."""
        return np.concatenate([[self._sim.data.time], self._sim.data.qpos, self._sim.data.qvel])

    def fixture_poses(self) -> NDArray[np.float64]:
        """Bodies' positions in their parents (bodies, 3): a reset samples them, `state_vector` lacks them."""
        return self._sim.model.body_pos.copy()

    def close(self) -> None:
        self._context = None
        self._control.close()

    def _start(self, state: NDArray[np.float64]) -> None:
        self._privileged_view = None
        if self.task.perturbation.at_pose:
            state = state.copy()
            state[1 + self._perturber.joints] = self._env.robots[0].init_qpos
        self._step = -SETTLE_STEPS
        self.start_state = state
        self._obs = self._control.set_init_state(state)
        for _ in range(SETTLE_STEPS):
            self.step(SETTLE_ACTION)

    def _seeded_reset(self, seed: int) -> None:
        """Place fixtures and objects to the bit as a new upstream environment does in "make; seed; reset"."""
        np.random.seed(seed)
        self._soft_reset(loads=2)  # upstream has loaded the model twice by then: in make and in reset

    def _soft_reset(self, loads: int) -> None:
        """Do what upstream's reset does, without compiling the model and opening a GL context again.

        `loads` is how often upstream would have loaded the model by the end of this reset.
        """
        env, model = self._env, self._sim.model
        for name, value in self._compiled.items():
            getattr(model, name)[:] = value
        env.object_property_initializers = self._initializers * loads
        for robot in env.robots:
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        self._sim.reset()
        self._sim.forward()
        self._sim.forward()  # upstream's, as it opens a GL context; the solver's warm start remembers it
        env._reset_internal()
        self._sim.forward()
        env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
        self._obs = env._get_observations(force_update=True)

    def _drifting_reset(self, key: EpisodeKey) -> None:
        """Reset as openpi's loop has by this episode: seed once, then reset episode + 1 times."""
        if self._drifting_seed != key.seed:
            self._draws.clear()
            np.random.seed(key.seed)
            self._draws[0] = np.random.get_state()
            self._drifting_seed = key.seed
        done = max(count for count in self._draws if count <= key.episode)
        for count in range(done + 1, key.episode + 2):
            np.random.set_state(self._draws[count - 1])
            self._soft_reset(loads=count + 1)
            self._draws[count] = np.random.get_state()

    def _take_snapshot(self) -> Snapshot:
        data, model = self._sim.data, self._sim.model
        return Snapshot(
            poses={name: getattr(data, name).copy() for name in SCENE_POSES},
            colours={name: getattr(model, name).copy() for name in SCENE_COLOURS},
            step=self._step,
        )

    def _open_context(self) -> Any:
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        model = self._sim.model
        if model.ntendon or model.nskin or model.nflex:
            raise NotImplementedError(
                f"task {self.task.language!r} has tendons, skins or flexes, which snapshots lack"
            )
        context = MjRenderContextOffscreen(self._sim, device_id=-1)
        context.vopt.geomgroup[0], context.vopt.geomgroup[1] = 0, 1  # visual meshes, no collision meshes
        context.data = SimpleNamespace(_data=self._canvas)
        return context

    def _truth(self) -> Truth:
        from eval.sim.privileged import Privileged

        if self._privileged_view is None:
            self._privileged_view = Privileged(self._env)
        return self._privileged_view.look(self.snapshot.poses)

    def _privileged(self) -> dict[str, NDArray[np.float64]]:
        model = self._sim.model
        site = model.site_name2id(self._env.robots[0].gripper.important_sites["grip_site"])
        poses = {
            f"{name}_{part}": np.array(self._obs[f"{name}_{part}"])
            for name in self._env.obj_body_id
            for part in ("pos", "quat")
            if f"{name}_{part}" in self._obs
        }
        return poses | {
            "grip_site_pos": self.snapshot.poses["site_xpos"][site].copy(),
            "grip_site_mat": self.snapshot.poses["site_xmat"][site].reshape(3, 3).copy(),
        }


@contextmanager
def _compiled_memory() -> Iterator[Mapping[str, NDArray[Any]]]:
    """Collect `MODEL_MEMORY` of the model that robosuite compiles inside, before anything writes into it.

    Robosuite's class is patched for the whole process while the context is open.
    """
    from robosuite.utils.binding_utils import MjSim

    memory: dict[str, NDArray[Any]] = {}
    original = vars(MjSim)["from_xml_string"]

    def compile_model(xml: str) -> Any:
        sim = original.__get__(None, MjSim)(xml)
        memory.update({name: getattr(sim.model, name).copy() for name in MODEL_MEMORY})
        return sim

    MjSim.from_xml_string = staticmethod(compile_model)
    try:
        yield memory
    finally:
        MjSim.from_xml_string = original


def quat_to_axis_angle(quat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a quaternion (x, y, z, w) to an axis-angle (3,) in radians, without an antipodal flip.

    As robosuite's `quat2axisangle`, which openpi uses: the angle is 2 acos(w), in [0, 2 pi].
    """
    w = float(np.clip(quat[3], -1.0, 1.0))
    norm = np.sqrt(1.0 - w * w)
    if np.isclose(norm, 0.0):
        return np.zeros(3)
    return np.asarray(quat[:3]) * (2.0 * np.arccos(w) / norm)
