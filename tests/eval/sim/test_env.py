"""LIBERO episodes are pure functions of their key, and equal to upstream's to the bit."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.episodes.rollout import sha256
from eval.sim.env import CAMERAS, MODEL_MEMORY, SETTLE_ACTION, SETTLE_STEPS, LiberoEnv, quat_to_axis_angle
from eval.sim.stack import quiet
from eval.sim.tasks import load_tasks
from policies.base import EpisodeKey
from policies.files import ROOT
from policies.seeding import stable_seed
from tests.eval.trajectories import ACTIONS, trajectory

TASKS = [("libero_spatial", 0), ("libero_spatial", 4), ("libero_10", 3)]
Moment = tuple[NDArray[np.float64], NDArray[np.float64], dict[str, NDArray[np.uint8]]]


@pytest.fixture
def make_env(simulator: dict[str, str]) -> Iterator[Callable[..., LiberoEnv]]:
    built = []

    def make(suite: str, task_id: int, **options: Any) -> LiberoEnv:
        built.append(LiberoEnv(load_tasks(suite)[task_id], **options))
        return built[-1]

    yield make
    for env in built:
        env.close()


def upstream(suite: str, task_id: int, seed: int, episodes: list[int]) -> list[list[Moment]]:
    """Return the moments of LIBERO's own environment, seeded once and rendering at every step, as openpi
    drives it."""
    from libero.libero.envs import OffScreenRenderEnv

    task = load_tasks(suite)[task_id]
    with quiet():
        env = OffScreenRenderEnv(bddl_file_name=task.bddl_file, camera_heights=256, camera_widths=256)
    env.seed(seed)
    runs = []
    for episode in episodes:
        with quiet():
            env.reset()
        env.set_init_state(task.init_states[episode])
        moments = []
        for action in [*[SETTLE_ACTION] * SETTLE_STEPS, *ACTIONS]:
            obs, *_ = env.step(action)
            images = {name: obs[name][::-1, ::-1] for name in CAMERAS}
            moments.append((env.get_sim_state(), obs["robot0_eef_pos"], images))
        runs.append(moments[SETTLE_STEPS - 1 :])
    env.close()
    return runs


def roll_here(env: LiberoEnv, episode: int, look_every: int) -> list[Moment]:
    """Return the moments of our environment, which renders only every `look_every` steps."""
    env.reset(EpisodeKey(env.task.suite, env.task.task_id, episode, 7))
    moments = []
    for step in range(len(ACTIONS) + 1):
        if step:
            env.step(ACTIONS[step - 1])
        observation = env.observe(CAMERAS if step % look_every == 0 else ())
        moments.append((env.state_vector(), observation.state[:3], dict(observation.images)))
    return moments


def assert_equal_moments(expected: list[Moment], got: list[Moment]) -> int:
    """Check that states are equal at every step, and images wherever they were rendered; return how many."""
    assert len(expected) == len(got)
    images = 0
    for (state, position, seen), (our_state, our_position, our_seen) in zip(expected, got, strict=True):
        np.testing.assert_array_equal(state, our_state)
        np.testing.assert_array_equal(position, our_position)
        for name, image in our_seen.items():
            np.testing.assert_array_equal(seen[name], image)
            images += 1
    return images


@pytest.mark.sim
def test_episode_is_the_same_first_after_others_and_in_another_process(
    make_env: Callable[..., LiberoEnv],
) -> None:
    alone = subprocess.run(
        [sys.executable, "-m", "tests.eval.trajectories", json.dumps(TASKS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for (suite, task_id), in_another_process in zip(TASKS, json.loads(alone.stdout), strict=True):
        env = make_env(suite, task_id, render=False)
        first = sha256(*trajectory(env, episode=3))
        other = sha256(*trajectory(env, episode=0))
        after_others = sha256(*trajectory(env, episode=3))
        assert first == after_others == in_another_process
        assert first != other


@pytest.mark.sim
@pytest.mark.parametrize(
    ("suite", "task_id"), [("libero_spatial", 4), ("libero_object", 2), ("libero_10", 3)]
)
def test_paired_episode_and_lazy_images_equal_a_fresh_upstream_environment(
    make_env: Callable[..., LiberoEnv], suite: str, task_id: int
) -> None:
    env = make_env(suite, task_id)
    trajectory(env, episode=1)  # a predecessor, which must leave no trace
    [expected] = upstream(suite, task_id, stable_seed("reset", suite, task_id, 3, 7), [3])
    assert assert_equal_moments(expected, roll_here(env, episode=3, look_every=3)) == 2 * 3


@pytest.mark.sim
def test_what_resets_write_back_is_the_model_as_compiled_and_robosuite_is_left_as_it_was(
    make_env: Callable[..., LiberoEnv],
) -> None:
    import mujoco
    from robosuite.utils.binding_utils import MjSim

    original = vars(MjSim)["from_xml_string"]
    env = make_env("libero_spatial", 4, render=False)
    compiled = mujoco.MjModel.from_xml_string(env._env.model.get_xml())
    for name in MODEL_MEMORY:
        np.testing.assert_array_equal(env._compiled[name], getattr(compiled, name))
    assert not np.array_equal(env._compiled["body_pos"], env._sim.model.body_pos), "nothing was placed"
    with pytest.raises(AssertionError, match="no such file does not exist"):  # LIBERO's
        LiberoEnv(replace(env.task, bddl_file="no such file"), render=False)
    assert vars(MjSim)["from_xml_string"] is original


@pytest.mark.sim
def test_openpi_seeding_repeats_upstreams_drift_in_any_order(make_env: Callable[..., LiberoEnv]) -> None:
    env = make_env("libero_10", 3, seeding="openpi")
    expected = upstream("libero_10", 3, 7, [0, 1, 2])
    for episode in (2, 0, 1):
        assert assert_equal_moments(expected[episode], roll_here(env, episode, look_every=8)) == 2 * 2


@pytest.mark.sim
def test_a_snapshot_shows_its_own_moment_later(make_env: Callable[..., LiberoEnv]) -> None:
    env = make_env("libero_spatial", 0)
    env.reset(EpisodeKey("libero_spatial", 0, 0, 7))
    snapshot, seen = env.snapshot, env.observe(["agentview_image"]).images["agentview_image"]
    for action in ACTIONS:
        env.step(action)
    state = env.state_vector()
    assert not np.array_equal(env.observe(["agentview_image"]).images["agentview_image"], seen)
    np.testing.assert_array_equal(env.render(snapshot), seen)
    np.testing.assert_array_equal(env.state_vector(), state)


@pytest.mark.sim
def test_what_an_environment_cannot_do_is_refused(make_env: Callable[..., LiberoEnv]) -> None:
    env = make_env("libero_spatial", 0, render=False)
    with pytest.raises(ValueError, match=r"episode must be 0 to 49 for libero_spatial task 0, got 50"):
        env.reset(EpisodeKey("libero_spatial", 0, 50, 7))
    with pytest.raises(ValueError, match=r"was given to the environment of libero_spatial task 0"):
        env.reset(EpisodeKey("libero_spatial", 1, 0, 7))
    env.reset(EpisodeKey("libero_spatial", 0, 0, 7))
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.full(7, np.nan))
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.zeros(6))
    with pytest.raises(RuntimeError, match="render=False"):
        env.observe(["agentview_image"])


@pytest.mark.parametrize(
    ("suite", "tasks"),
    [
        ("libero_spatial", 10),
        ("libero_object", 10),
        ("libero_goal", 10),
        ("libero_10", 10),
        ("libero_90", 90),
    ],
)
def test_every_task_has_fifty_official_initial_states(suite: str, tasks: int) -> None:
    assert [len(task.init_states) for task in load_tasks(suite)] == [50] * tasks


def test_an_unknown_suite_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"libero_spatial, libero_object, .*, got 'libero_spacial'"):
        load_tasks("libero_spacial")


def test_axis_angle_is_the_logarithm_without_antipodal_flip() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(quat_to_axis_angle(np.array([half, 0, 0, half])), [np.pi / 2, 0, 0])
    np.testing.assert_allclose(quat_to_axis_angle(np.array([-half, 0, 0, -half])), [-3 * np.pi / 2, 0, 0])
    np.testing.assert_array_equal(quat_to_axis_angle(np.array([0, 0, 0, 1.0])), np.zeros(3))
