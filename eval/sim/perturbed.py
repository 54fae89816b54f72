"""Move the camera and the arm of an environment that is built, without building it again."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.sim.camera import Pose
from eval.sim.noise import apply
from eval.sim.plus import USUAL_VIEW, Perturbation
from eval.sim.robot import arm_pose
from policies.seeding import stable_seed

CAMERA = "agentview"  # the only one that LIBERO-Plus moves or disturbs


class Perturber:
    """Puts perturbations into LIBERO's environment `env`, and takes them out again."""

    def __init__(self, env: Any) -> None:
        self._robot, self._model = env.robots[0], env.sim.model
        self._home: NDArray[np.float64] = self._robot.init_qpos
        self._camera = self._model.camera_name2id(CAMERA)
        self._compiled: Pose = (
            self._model.cam_pos[self._camera].copy(),
            self._model.cam_quat[self._camera].copy(),
        )
        element = env.model.worldbody.find(f"./camera[@name='{CAMERA}']")
        self._written: Pose = _numbers(element.get("pos")), _numbers(element.get("quat"))

    @property
    def joints(self) -> Any:
        """Of the arm, within qpos."""
        return np.array(self._robot._ref_joint_pos_indexes)

    def put(self, perturbation: Perturbation) -> None:
        """Put the camera where it stands now, and the arm where the next reset builds its controller."""
        self._robot.init_qpos = arm_pose(perturbation.pose) if perturbation.pose else self._home
        position, quat = self._compiled
        if perturbation.is_camera_rounded or perturbation.view != USUAL_VIEW:
            position, quat = perturbation.view.move(*self._written)
            quat = quat / np.linalg.norm(quat)
        self._model.cam_pos[self._camera], self._model.cam_quat[self._camera] = position, quat


def disturbed(
    frame_HWC: NDArray[np.uint8], camera: str, perturbation: Perturbation, *moment: str | int
) -> NDArray[np.uint8]:
    """Put a perturbation's noise over a camera's raw frame, drawn for the words that name the moment."""
    if camera != CAMERA or not perturbation.noise:
        return frame_HWC
    return apply(frame_HWC, perturbation.noise, np.random.RandomState(stable_seed("sensor", camera, *moment)))


def _numbers(text: str) -> NDArray[np.float64]:
    return np.array(text.split(), dtype=np.float64)
