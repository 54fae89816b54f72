"""A control step that computes each moment once ends in the bits of one that computes it three times."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.libero_env import LiberoEnv, load_tasks
from policies.base import EpisodeKey, Request
from policies.oracle import OraclePolicy

# a box falls onto a driven arm: contacts, limits, friction, a mocap body, sensors of each stage
MODEL = """
<mujoco>
  <option timestep="0.002" integrator="{integrator}"/>
  <worldbody>
    <geom type="plane" size="2 2 .1"/>
    <body mocap="true" pos=".3 .03 .4"><geom type="box" size=".04 .04 .04"/></body>
    <body pos="0 0 .3"><joint name="hinge" type="hinge" axis="0 1 0" range="-40 40" limited="true"/>
      <geom name="arm" type="capsule" fromto="0 0 0 .4 0 0" size=".04"/><site name="tip" pos=".4 0 0"/></body>
    <body pos=".3 0 .5"><freejoint/><geom type="box" size=".05 .05 .05" friction=".6"/></body>
  </worldbody>
  <actuator><motor name="hinge" joint="hinge" gear="3"/></actuator>
  <sensor><framepos objtype="site" objname="tip"/><jointvel joint="hinge"/><actuatorfrc actuator="hinge"/>
    <accelerometer site="tip"/></sensor>
</mujoco>
"""


class Sim:
    """What `Substeps` needs of robosuite's `MjSim`."""

    def __init__(self, integrator: str = "Euler") -> None:
        import mujoco

        self.mujoco = mujoco
        self.model = SimpleNamespace(
            _model=mujoco.MjModel.from_xml_string(MODEL.format(integrator=integrator))
        )
        self.data = SimpleNamespace(_data=mujoco.MjData(self.model._model))

    def forward(self) -> None:
        self.mujoco.mj_forward(self.model._model, self.data._data)

    def step(self) -> None:
        self.mujoco.mj_step(self.model._model, self.data._data)

    def bits(self) -> NDArray[np.float64]:
        data = self.data._data
        parts = (data.time, data.qpos, data.qvel, data.qacc, data.qacc_warmstart, data.sensordata)
        return np.concatenate([np.ravel(part) for part in parts])


def substep(sim: Sim, control: float, disturb: Callable[[Any], None] = lambda data: None) -> None:
    """Do what robosuite's `MujocoEnv.step` and its controller do in one substep."""
    sim.forward()
    disturb(sim.data._data)
    sim.forward()
    sim.data._data.ctrl[:] = control
    sim.step()


def both(disturb: Callable[[int, Any], None] = lambda i, data: None) -> tuple[list[Any], list[Any]]:
    """Return the bits after each of 500 substeps, as upstream computes them and as we do."""
    from eval.substeps import Substeps

    plain, ours = Sim(), Sim()
    controls = np.random.default_rng(0).uniform(-1, 1, 500)
    seen: tuple[list[Any], list[Any]] = ([], [])
    substeps = Substeps(ours)
    for i, control in enumerate(controls):
        substep(plain, control, lambda data, i=i: disturb(i, data))
        with substeps:
            substep(ours, control, lambda data, i=i: disturb(i, data))
        seen[0].append(plain.bits())
        seen[1].append(ours.bits())
    assert ours.data._data.ncon > 0, "the model was to be in contact"
    return seen


@pytest.mark.sim
def test_a_moment_is_computed_once_and_the_bits_stay(
    simulator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mujoco

    calls: Counter[str] = Counter()
    for name in ("mj_forward", "mj_step", "mj_forwardSkip", "mj_step2"):
        original = getattr(mujoco, name)

        def count(*args: Any, name: str = name, original: Any = original) -> None:
            calls[name] += 1
            original(*args)

        monkeypatch.setattr(mujoco, name, count)
    plain, ours = both()
    np.testing.assert_array_equal(plain, ours)
    upstream_calls = {"mj_forward": 2 * 500, "mj_step": 500}
    our_calls = {"mj_forward": 500, "mj_forwardSkip": 500, "mj_step2": 500}
    assert calls == Counter(upstream_calls) + Counter(our_calls)


@pytest.mark.sim
@pytest.mark.parametrize("what", ["qpos", "qvel", "mocap_pos", "mocap_quat"])
def test_a_moment_that_was_changed_is_computed_again(simulator: dict[str, str], what: str) -> None:
    def disturb(i: int, data: Any) -> None:
        if i % 7 == 0:
            getattr(data, what).flat[-1] += 1e-3

    plain, ours = both(disturb)
    np.testing.assert_array_equal(plain, ours)
    undisturbed, _ = both()
    assert not np.array_equal(plain, undisturbed)


@pytest.mark.sim
@pytest.mark.parametrize("value", [np.nan, 1e11])
def test_a_simulation_that_went_wrong_starts_again_as_upstreams_does(
    simulator: dict[str, str], value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.substeps import Substeps

    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings there
    plain, ours = Sim(), Sim()
    for sim in (plain, ours):
        sim.data._data.qvel[0] = value
    substep(plain, 0.5)
    with Substeps(ours):
        substep(ours, 0.5)
    assert np.all(np.abs(plain.data._data.qvel) < 1)
    np.testing.assert_array_equal(plain.bits(), ours.bits())


@pytest.mark.sim
def test_outside_a_control_step_nothing_is_left_out(simulator: dict[str, str]) -> None:
    from eval.substeps import Substeps

    sim = Sim()
    original = {"mujoco", "model", "data"}
    with Substeps(sim):
        assert set(vars(sim)) == original | {"forward", "step"}
    assert set(vars(sim)) == original


@pytest.mark.sim
def test_an_integrator_that_computes_more_is_refused(simulator: dict[str, str]) -> None:
    from eval.substeps import Substeps

    with pytest.raises(NotImplementedError, match="RK4"):
        Substeps(Sim("RK4"))


@pytest.mark.sim
@pytest.mark.parametrize("task_id", [0, 4])
def test_an_episode_with_grasps_has_the_bits_of_one_that_leaves_nothing_out(
    simulator: dict[str, str], monkeypatch: pytest.MonkeyPatch, task_id: int
) -> None:
    import eval.substeps

    env, oracle = LiberoEnv(load_tasks("libero_spatial")[task_id], render=False), OraclePolicy()
    key = EpisodeKey("libero_spatial", task_id, 2, 7)

    def episode() -> list[NDArray[np.float64]]:
        env.reset(key)
        moments = []
        for step in range(120):
            [chunk] = oracle.infer([Request(env.observe(privileged=True), key, step)])
            done = env.step(chunk.actions_HJ[0])
            moments.append(np.concatenate([env.state_vector(), env._sim.data.qacc_warmstart]))
            if done:
                return moments
        pytest.fail("the oracle did not solve the episode")

    ours = episode()
    monkeypatch.setattr(eval.substeps.Substeps, "__enter__", lambda self: None)
    monkeypatch.setattr(eval.substeps.Substeps, "__exit__", lambda self, *error: None)
    np.testing.assert_array_equal(episode(), ours)
    env.close()
