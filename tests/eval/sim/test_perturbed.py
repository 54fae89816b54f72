"""Perturbed episodes: what the released code does, nothing else, and pure functions of their key."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.episodes.rollout import sha256
from eval.sim.camera import View
from eval.sim.env import LiberoEnv
from eval.sim.noise import apply
from eval.sim.plus import NEUTRAL, Perturbation
from eval.sim.robot import arm_pose
from eval.sim.tasks import Task, load_tasks
from policies.base import EpisodeKey
from policies.seeding import stable_seed
from tests.eval.fake_run import results
from tests.eval.sim.perturbed_runs import perturbed_plan, perturbed_tasks, run
from tests.eval.trajectories import ACTIONS

AGENT, WRIST = "agentview_image", "robot0_eye_in_hand_image"


def task_of(suite: str, perturbation: Perturbation, base_task_id: int = 0) -> Task:
    """A task of LIBERO-Plus with this perturbation, whether its table has it or not."""
    return replace(
        next(task for task in load_tasks(suite) if task.start[1] == base_task_id), perturbation=perturbation
    )


@pytest.fixture(scope="module")
def env(simulator: dict[str, str]) -> Iterator[LiberoEnv]:
    """One environment of a scene, which the tests hand from task to task."""
    built = LiberoEnv(load_tasks("libero_spatial_plus_robot")[0])
    yield built
    built.close()


@pytest.fixture
def roll(env: LiberoEnv) -> Callable[..., list[Any]]:
    """States and images of an episode of a task in that environment."""

    def rolled(task: Task, actions: int = 3) -> list[Any]:
        env.serve(task)
        env.reset(EpisodeKey(task.suite, task.task_id, 0, 7))
        moments = []
        for step in range(actions + 1):
            if step:
                env.step(ACTIONS[step - 1])
            images = env.observe((AGENT, WRIST)).images
            moments.append((env.state_vector(), images[AGENT], images[WRIST]))
        return moments

    return rolled


@pytest.mark.sim
def test_the_arm_settles_where_the_released_code_lets_it(env: LiberoEnv) -> None:
    hands = {
        401: [(-0.4066, 0.0204, 0.9943), (-0.2108, -0.0152, 1.1757), (-0.3330, -0.0079, 1.0663)],
        0: [None, None, (-0.2112, -0.0111, 1.1743)],
    }
    for pose, (at_reset, at_state, settled) in hands.items():
        task = task_of("libero_spatial_plus_robot", Perturbation(pose=pose))
        env.serve(task)
        env.reset(EpisodeKey(task.suite, task.task_id, 0, 7))
        np.testing.assert_allclose(env.observe().state[:3], settled, atol=1e-4)
        if at_reset is not None:
            env._seeded_reset(0)
            np.testing.assert_allclose(env._obs["robot0_eef_pos"], at_reset, atol=1e-4)
            env._obs = env._control.set_init_state(task.init_states[0])
            np.testing.assert_allclose(env._obs["robot0_eef_pos"], at_state, atol=1e-4)


@pytest.mark.sim
def test_a_start_at_the_pose_is_at_the_pose(env: LiberoEnv) -> None:
    task = task_of("libero_spatial_plus_pose", Perturbation(pose=401, at_pose=True))
    env.serve(task)
    env.reset(EpisodeKey(task.suite, task.task_id, 0, 7))
    assert env.start_state[1:8].tolist() == arm_pose(401).tolist()
    assert np.array_equal(
        np.delete(env.start_state, range(1, 8)), np.delete(task.init_states[0], range(1, 8))
    )
    assert np.linalg.norm(env.observe().state[:3] - (-0.4066, 0.0204, 0.9943)) < 0.01


@pytest.mark.sim
def test_neutral_parameters_are_the_base_episode_to_the_bit_after_any_other(
    env: LiberoEnv, roll: Callable[..., list[Any]]
) -> None:
    other = LiberoEnv(load_tasks("libero_spatial")[0])
    other.reset(EpisodeKey("libero_spatial", 0, 0, 7))
    expected = [(other.state_vector(), *other.observe((AGENT, WRIST)).images.values())]
    for action in ACTIONS[:3]:
        other.step(action)
        expected.append((other.state_vector(), *other.observe((AGENT, WRIST)).images.values()))
    other.close()
    roll(task_of("libero_spatial_plus_robot", Perturbation(View(40, 15), pose=401, noise=35)))
    for moment, own in zip(roll(task_of("libero_spatial_plus_robot", NEUTRAL)), expected, strict=True):
        assert sha256(*moment) == sha256(*own)
    rounded = roll(task_of("libero_spatial_plus_robot", Perturbation(is_camera_rounded=True)))
    for moment, own in zip(rounded, expected, strict=True):
        assert sha256(moment[0], moment[2]) == sha256(own[0], own[2])
        change = np.abs(moment[1].astype(int) - own[1]).mean()
        assert 0 < change < 0.5, "another picture, by less than a pixel"


@pytest.mark.sim
def test_a_view_moves_the_camera_to_the_bit_as_a_compiled_model_has_it(
    env: LiberoEnv, roll: Callable[..., list[Any]]
) -> None:
    import mujoco

    task = task_of("libero_spatial_plus_camera", Perturbation(View(11, 15)))
    states, seen, wrist = roll(task, 0)[0]
    position, quat = View(11, 15).move(*env._perturber._written)
    written = env._env.model.worldbody.find("./camera[@name='agentview']")
    kept = dict(written.attrib)
    written.set("pos", " ".join(map(repr, position.tolist())))
    written.set("quat", " ".join(map(repr, quat.tolist())))
    compiled = mujoco.MjModel.from_xml_string(env._env.model.get_xml())
    written.attrib.update(kept)
    for name in ("cam_pos", "cam_quat", "cam_fovy"):
        np.testing.assert_array_equal(getattr(compiled, name), getattr(env._sim.model, name))
    own_states, own_seen, own_wrist = roll(task_of("libero_spatial_plus_camera", NEUTRAL), 0)[0]
    assert sha256(states, wrist) == sha256(own_states, own_wrist)
    assert np.abs(seen.astype(int) - own_seen).mean() > 5


@pytest.mark.sim
def test_noise_is_over_the_raw_frame_of_one_camera_and_its_own_at_every_step(
    env: LiberoEnv, roll: Callable[..., list[Any]]
) -> None:
    noisy = roll(task_of("libero_spatial_plus_noise", Perturbation(noise=45)), 1)
    first = env.snapshot
    again = env.render(first, AGENT)
    clean = roll(task_of("libero_spatial_plus_noise", NEUTRAL), 1)
    for moment, own in zip(noisy, clean, strict=True):
        assert sha256(moment[0], moment[2]) == sha256(own[0], own[2])
    np.testing.assert_array_equal(again, noisy[1][1])

    def rng_of(step: int) -> np.random.RandomState:
        task = task_of("libero_spatial_plus_noise", NEUTRAL)
        return np.random.RandomState(stable_seed("sensor", "agentview", task.suite, task.task_id, 0, 7, step))

    for step in (0, 1):
        raw = np.ascontiguousarray(clean[step][1][::-1, ::-1])
        np.testing.assert_array_equal(apply(raw, 45, rng_of(step))[::-1, ::-1], noisy[step][1])
    assert not np.array_equal(apply(raw, 45, rng_of(0)), apply(raw, 45, rng_of(1)))


@pytest.mark.sim
def test_a_task_of_another_scene_is_refused(env: LiberoEnv) -> None:
    with pytest.raises(ValueError, match=r"libero_spatial_plus_camera task \d+ is of another scene than"):
        env.serve(task_of("libero_spatial_plus_camera", NEUTRAL, 3))


@pytest.mark.sim
def test_records_are_the_same_in_any_order_in_shards_and_with_four_workers(
    tmp_path: Path, simulator: dict[str, str]
) -> None:  # builds a dozen environments: seconds each
    tasks = perturbed_tasks()
    expected = results(run(tmp_path / "local", perturbed_plan(tasks)))
    assert len({actions for _, _, _, actions, _ in expected.values()}) == 4
    assert results(run(tmp_path / "back", perturbed_plan(tasks[::-1]))) == expected
    parts = [run(tmp_path / f"part{i}", perturbed_plan(tasks, f"{i}/2")) for i in (1, 2)]
    assert results(parts[0]) | results(parts[1]) == expected
    assert results(run(tmp_path / "ray", perturbed_plan(tasks), workers=4)) == expected
