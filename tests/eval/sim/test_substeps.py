"""A control step that leaves out what it has computed already ends in the bits of one that does not."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.sim.env import LiberoEnv
from eval.sim.tasks import load_tasks
from policies.base import EpisodeKey, Request
from policies.oracle.policy import OraclePolicy

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


def make_sim(integrator: str = "Euler") -> Any:
    from robosuite.utils.binding_utils import MjSim

    return MjSim.from_xml_string(MODEL.format(integrator=integrator))


def bits(sim: Any) -> NDArray[np.float64]:
    data = sim.data._data
    parts = (data.time, data.qpos, data.qvel, data.qacc, data.qacc_warmstart, data.sensordata)
    return np.concatenate([np.ravel(part) for part in parts])


def substep(sim: Any, control: float, disturb: Callable[[Any], None] = lambda data: None) -> None:
    """Do what robosuite's `MujocoEnv.step` and its controller do in one substep."""
    sim.forward()
    disturb(sim.data._data)
    sim.forward()
    sim.data._data.ctrl[:] = control
    sim.step()


def both(disturb: Callable[[int, Any], None] = lambda i, data: None) -> tuple[list[Any], list[Any]]:
    """Return the bits after each of 500 substeps, as upstream computes them and as we do."""
    from eval.sim.substeps import Substeps

    plain, fast = make_sim(), make_sim()
    controls = np.random.default_rng(0).uniform(-1, 1, 500)
    seen: tuple[list[Any], list[Any]] = ([], [])
    substeps = Substeps(fast)
    for i, control in enumerate(controls):
        substep(plain, control, lambda data, i=i: disturb(i, data))
        with substeps:
            substep(fast, control, lambda data, i=i: disturb(i, data))
        seen[0].append(bits(plain))
        seen[1].append(bits(fast))
    assert fast.data._data.ncon > 0, "the model was to be in contact"
    return seen


@pytest.fixture
def calls(simulator: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of MuJoCo's functions was called."""
    import mujoco

    found: Counter[str] = Counter()
    for name in ("mj_forward", "mj_step", "mj_forwardSkip", "mj_step2"):
        original = getattr(mujoco, name)

        def count(*args: Any, name: str = name, original: Any = original) -> None:
            found[name] += 1
            original(*args)

        monkeypatch.setattr(mujoco, name, count)
    return found


@pytest.mark.sim
def test_a_moment_is_computed_once_and_the_bits_stay(calls: Counter[str]) -> None:
    plain, fast = both()
    np.testing.assert_array_equal(plain, fast)
    upstream_calls = {"mj_forward": 2 * 500, "mj_step": 500}
    our_calls = {"mj_forward": 500, "mj_forwardSkip": 500, "mj_step2": 500}
    assert calls == Counter(upstream_calls) + Counter(our_calls)


@pytest.mark.sim
@pytest.mark.parametrize("what", ["qpos", "qvel", "mocap_pos", "mocap_quat"])
def test_a_moment_that_was_changed_is_computed_again(simulator: dict[str, str], what: str) -> None:
    def disturb(i: int, data: Any) -> None:
        if i % 7 == 0:
            getattr(data, what).flat[-1] += 1e-3

    plain, fast = both(disturb)
    np.testing.assert_array_equal(plain, fast)
    undisturbed, _ = both()
    assert not np.array_equal(plain, undisturbed)


@pytest.mark.sim
@pytest.mark.parametrize("what", ["qpos", "qvel"])
def test_a_simulation_that_went_wrong_starts_again_as_upstreams_does(
    simulator: dict[str, str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.sim.substeps import Substeps

    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings there
    plain, fast = make_sim(), make_sim()
    for sim in (plain, fast):
        getattr(sim.data._data, what)[0] = 1e11
    substep(plain, 0.5)
    with Substeps(fast):
        substep(fast, 0.5)
    assert np.all(np.abs(getattr(plain.data._data, what)) < 2)
    np.testing.assert_array_equal(bits(plain), bits(fast))


@pytest.mark.sim
def test_outside_a_control_step_nothing_is_left_out(simulator: dict[str, str]) -> None:
    from eval.sim.substeps import Substeps

    sim = make_sim()
    original = set(vars(sim))
    with Substeps(sim):
        assert set(vars(sim)) == original | {"forward", "step"}
    assert set(vars(sim)) == original


@pytest.mark.sim
def test_an_integrator_that_computes_more_is_refused(simulator: dict[str, str]) -> None:
    from eval.sim.substeps import Substeps

    with pytest.raises(NotImplementedError, match="RK4"):
        Substeps(make_sim("RK4"))


@pytest.mark.sim
@pytest.mark.parametrize("task_id", [0, 4])
def test_an_episode_with_grasps_has_the_bits_of_one_that_leaves_nothing_out(
    calls: Counter[str], monkeypatch: pytest.MonkeyPatch, task_id: int
) -> None:
    import eval.sim.substeps

    env, oracle = LiberoEnv(load_tasks("libero_spatial")[task_id], render=False), OraclePolicy()
    key = EpisodeKey("libero_spatial", task_id, 2, 7)

    def episode() -> list[NDArray[np.float64]]:
        env.reset(key)
        calls.clear()
        moments = []
        for step in range(120):
            [chunk] = oracle.infer([Request(env.observe(privileged=True), key, step)])
            done = env.step(chunk.actions_HJ[0])
            moments.append(np.concatenate([env.state_vector(), env._sim.data.qacc_warmstart]))
            if done:
                return moments
        pytest.fail("the oracle did not solve the episode")

    fast = episode()
    substeps = 25 * len(fast)
    assert calls == {"mj_forward": substeps, "mj_forwardSkip": substeps, "mj_step2": substeps}
    monkeypatch.setattr(eval.sim.substeps.Substeps, "__enter__", lambda self: None)
    monkeypatch.setattr(eval.sim.substeps.Substeps, "__exit__", lambda self, *error: None)
    np.testing.assert_array_equal(episode(), fast)
    assert calls == {"mj_forward": 2 * substeps, "mj_step": substeps}
    env.close()
