"""A stand-in for a simulated task: the hand goes where it is told, and all that is done is written down."""

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.sim.env import CAMERA_SIZE
from policies.base import Observation
from policies.oracle.scene import BOWL, PLATE, SUITE
from policies.oracle.servo import METRES_PER_ACTION
from policies.truth import Layout, Pose, Predicate, Truth

PLATE_POSITION = np.array([0.07, 0.20, 0.90])
POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
LAYOUT = Layout(
    goal=(Predicate("on", (BOWL, PLATE)),),
    roots={BOWL: f"{BOWL}_main", PLATE: f"{PLATE}_main"},
    movable=frozenset((BOWL, PLATE)),
    bodies={},
    regions={},
    joints={},
)


class FakeEnv:
    """One task without physics: closed fingers near the bowl carry it, the goal is the bowl on the plate.

    The first camera's picture is as bright as the control step is late, the second's is its negative.

    Attributes:
        executed: every action.
        grips: where the hand was before each of them.
        succeeded: after which of them the goal held.
    """

    def __init__(self) -> None:
        self.task = SimpleNamespace(suite=SUITE, task_id=2, init_states=np.full((50, 4), 9.0))
        self.num_positions = 3

    def reset_randomly(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.bowl = np.array([-0.08, 0.02, 0.90]) + rng.uniform(-0.03, 0.03, 3) * [1, 1, 0]
        self.grip = np.array([-0.21, 0.0, 1.18])
        self.start_state = np.array([0.0, *self.bowl])
        self.executed: list[NDArray[np.float64]] = []
        self.grips: list[NDArray[np.float64]] = []
        self.succeeded: list[bool] = []

    def observe(self, cameras: Iterable[str] = (), *, privileged: bool = False) -> Observation:
        level = len(self.executed) % 256
        levels = {"agentview_image": level, "robot0_eye_in_hand_image": 255 - level}
        poses = {
            f"{BOWL}_pos": self.bowl.copy(),
            f"{BOWL}_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            f"{PLATE}_pos": PLATE_POSITION,
            "grip_site_pos": self.grip.copy(),
            "grip_site_mat": POINTING_DOWN,
        }
        return Observation(
            images={name: np.full((CAMERA_SIZE, CAMERA_SIZE, 3), levels[name], np.uint8) for name in cameras},
            state=np.array([*self.grip, *np.zeros(5)]),
            instruction="pick up the black bowl from table center and place it on the plate",
            privileged=poses if privileged else {},
            truth=self._truth() if privileged else None,
        )

    def _truth(self) -> Truth:
        places = {f"{BOWL}_main": self.bowl.copy(), f"{PLATE}_main": PLATE_POSITION}
        return Truth(
            layout=LAYOUT,
            bodies={name: Pose(position, np.eye(3)) for name, position in places.items()},
            regions={},
            joints={},
            grip=Pose(self.grip.copy(), POINTING_DOWN),
            gripper=0.08,
        )

    def step(self, action: NDArray[np.float64]) -> bool:
        self.executed.append(np.array(action))
        self.grips.append(self.grip)
        carried = action[6] > 0 and np.linalg.norm(self.bowl - self.grip) < 0.07
        moved = 0.3 * METRES_PER_ACTION * action[:3]
        self.grip = self.grip + moved
        if carried:
            self.bowl = self.bowl + moved
        miss = self.bowl - PLATE_POSITION
        self.succeeded.append(bool(np.linalg.norm(miss[:2]) < 0.03 and miss[2] < 0.01))
        return self.succeeded[-1]


@pytest.fixture
def fake_env() -> FakeEnv:
    return FakeEnv()
