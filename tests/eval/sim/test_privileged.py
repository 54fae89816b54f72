"""What policies with `needs_privileged` see equals what the simulator holds, and follows each reset."""

import numpy as np
import pytest

from eval.sim.env import LiberoEnv
from eval.sim.privileged import Privileged, _predicate
from eval.sim.tasks import load_tasks
from policies.base import EpisodeKey
from policies.truth import Predicate, Truth


def see(env: LiberoEnv) -> Truth:
    truth = env.observe(privileged=True).truth
    assert truth is not None
    return truth


@pytest.mark.sim
def test_truth_is_the_simulators_goal_poses_joints_and_boxes(simulator: dict[str, str]) -> None:
    env = LiberoEnv(load_tasks("libero_goal")[3], render=False)
    key = EpisodeKey("libero_goal", 3, 0, 7)
    env.reset(key)
    assert env.observe().truth is None
    truth = see(env)
    layout = truth.layout
    assert layout.goal == (Predicate("in", ("akita_black_bowl_1", "wooden_cabinet_1_top_region")),)
    assert "plate_1" in layout.movable
    assert not {"wooden_cabinet_1", "flat_stove_1"} & layout.movable
    assert {"wooden_cabinet_1", "flat_stove_1", "wine_rack_1"} <= set(layout.roots)
    assert all(not name.startswith(("robot0", "gripper0")) for name in layout.bodies)
    assert see(env).layout is layout, "constants are read once a reset"

    data, model = env._sim.data, env._sim.model
    for thing, root in layout.roots.items():
        position = data.body_xpos[model.body_name2id(root)]
        np.testing.assert_allclose(truth.bodies[root].position, position, atol=2e-3, err_msg=thing)
    # moved by hand, to say more than that all joints are 0
    for name, value in (("wooden_cabinet_1_top_level", -0.11), ("flat_stove_1_button", 0.7)):
        data.set_joint_qpos(name, value)
    env._sim.forward()
    poses = {name: getattr(data, name) for name in ("xpos", "xmat", "site_xpos", "site_xmat")}
    opened = Privileged(env._env).look(poses)
    for name, value in opened.joints.items():
        assert value == pytest.approx(data.get_joint_qpos(name), abs=1e-9), name
    region = "wooden_cabinet_1_top_region"
    assert layout.regions[region].joint == "wooden_cabinet_1_top_level"
    travelled = opened.regions[region].position - truth.regions[region].position
    assert np.linalg.norm(travelled) == pytest.approx(0.11, abs=1e-3)

    drawer = layout.joints["wooden_cabinet_1_top_level"]
    handle = layout.bodies[drawer.body].boxes.halves_N3[drawer.handle]
    assert sorted(handle) == pytest.approx([0.0077, 0.0082, 0.0445], abs=1e-3)  # the bar
    knob = layout.joints["flat_stove_1_button"]
    ridge = layout.bodies[knob.body].boxes.halves_N3[knob.handle]
    assert sorted(ridge) == pytest.approx([0.0121, 0.0243, 0.0345], abs=1e-3)
    assert truth.gripper == pytest.approx(0.078, abs=3e-3)
    site = model.site_name2id("gripper0_grip_site")
    np.testing.assert_array_equal(truth.grip.position, env.snapshot.poses["site_xpos"][site])

    env.reset(EpisodeKey("libero_goal", 3, 1, 7))
    cabinet = layout.roots["wooden_cabinet_1"]
    assert not np.allclose(see(env).bodies[cabinet].position, truth.bodies[cabinet].position, atol=1e-6)
    env.close()


@pytest.mark.sim
def test_what_libero_does_not_let_collide_both_ways_is_there_too(simulator: dict[str, str]) -> None:
    env = LiberoEnv(load_tasks("libero_10")[9], render=False)
    env.reset(EpisodeKey("libero_10", 9, 0, 7))
    layout = see(env).layout
    door = layout.joints["microwave_1_microjoint"]
    assert door.kind == "hinge"
    assert len(layout.bodies[door.body].boxes.halves_N3) == 4
    assert door.limits == pytest.approx((-2.094, 0.0))
    env.close()


@pytest.mark.parametrize("state", [["stack", "a", "b"], ["on", "a"], ["open", "a", "b"]])
def test_a_goal_that_nobody_can_read_is_an_error(state: list[str]) -> None:
    with pytest.raises(ValueError, match="must be one of open, close, turnon, turnoff, on, in"):
        _predicate(state)


def test_a_goal_is_read_without_its_spelling() -> None:
    assert _predicate(["Turnon", "flat_stove_1"]) == Predicate("turnon", ("flat_stove_1",))
    assert str(Predicate("on", ("a", "b"))) == "on(a, b)"
