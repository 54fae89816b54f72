"""Save time in robosuite's control step, exactly: compute once what follows from positions and velocities.

A control step has 25 substeps, and robosuite computes each moment three times: before the controller, in
it, and in MuJoCo's own step. All three have the same positions and velocities. Kinematics, collisions,
constraints and bias forces follow from these alone, so the first call computes them, and the others do the
rest: controls, accelerations, the solver, the integration. The solver starts from the last one's result, so
it is run every time, as upstream; the bits stay the same (tests/eval/sim/test_substeps.py).
"""

from types import TracebackType
from typing import Any

import mujoco
import numpy as np


class Substeps:
    """A context in which a simulator's `forward` and `step` skip what they have computed already.

    Non-obvious behaviors:
        Positions, velocities and mocap poses are compared bit by bit with those of the last full computation;
        nothing else of the model may change inside the context.

    Args:
        sim: robosuite's `MjSim`, whose two methods are replaced while the context is open.

    Raises:
        NotImplementedError: the model's integrator needs more than one computation a step.
    """

    def __init__(self, sim: Any) -> None:
        self._sim = sim
        self._model, self._data = sim.model._model, sim.data._data
        if self._model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            raise NotImplementedError("a model with the integrator RK4 cannot be stepped in two halves")
        self._known: bytes | None = None

    def __enter__(self) -> None:
        self._known = None
        self._sim.forward, self._sim.step = self._forward, self._step

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._sim.forward, self._sim.step

    def _forward(self) -> None:
        if self._is_known():
            mujoco.mj_forwardSkip(self._model, self._data, mujoco.mjtStage.mjSTAGE_VEL, 0)
            return
        mujoco.mj_forward(self._model, self._data)
        self._known = self._moment() if self._is_sound() else None

    def _step(self) -> None:
        if self._is_known():
            mujoco.mj_step2(self._model, self._data)
        else:
            mujoco.mj_step(self._model, self._data)
        self._known = None

    def _is_known(self) -> bool:
        return self._known is not None and self._known == self._moment()

    def _moment(self) -> bytes:
        data = self._data
        return b"".join(x.tobytes() for x in (data.qpos, data.qvel, data.mocap_pos, data.mocap_quat))

    def _is_sound(self) -> bool:
        """Whether `mj_step` would go on from here; otherwise it starts again, `mj_step2` does not."""
        return all(np.abs(x).max(initial=0.0) <= mujoco.mjMAXVAL for x in (self._data.qpos, self._data.qvel))
