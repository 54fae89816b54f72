"""Demonstrations: pure functions of their seed, never from an official initial state, labels only from the
oracle."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from eval.sim.env import LiberoEnv
from eval.sim.tasks import load_tasks
from policies.base import ActionChunk, EpisodeKey, Policy, Request
from policies.oracle.servo import OPEN
from policies.reference.demos import (
    AFTERWARDS,
    CAMERAS,
    LEARNER_VISITS,
    LOOK_EVERY,
    MIN_LABELS,
    Demo,
    check_not_official,
    count_labels,
    load_demo,
    plan_disturbances,
    plan_jobs,
    record,
    save_demo,
)
from policies.reference.sizes import DIMS
from tests.policies.reference.conftest import FakeEnv


@pytest.fixture
def env(simulator: dict[str, str]) -> Iterator[LiberoEnv]:
    env = LiberoEnv(load_tasks("libero_spatial")[0])
    yield env
    env.close()


@pytest.mark.sim
def test_a_demonstration_is_successful_and_a_function_of_its_seed(env: LiberoEnv) -> None:
    demo = record(env, seed=0, learner=None)
    again = record(env, seed=0, learner=None)
    assert demo.success
    np.testing.assert_array_equal(demo.actions_TJ, again.actions_TJ)
    np.testing.assert_array_equal(demo.images_FNHWC, again.images_FNHWC)
    assert demo.images_FNHWC.shape == (len(demo.steps_F), 2, DIMS.image_size, DIMS.image_size, 3)
    assert (demo.steps_F % LOOK_EVERY == 0).all()
    assert demo.num_labels_F.min() >= MIN_LABELS
    assert np.abs(demo.actions_TJ).max() <= 1.0


class Contrarian:
    """A learner that asks for what the oracle never does, in chunks of which five actions are executed."""

    replan_steps = 5

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        assert all(tuple(request.observation.images) == CAMERAS for request in requests)
        assert not any(request.observation.privileged for request in requests)
        return [ActionChunk(np.full((10, 7), 0.123)) for _ in requests]


@pytest.mark.parametrize("learner", [None, Contrarian()], ids=["pushes", "learner"])
@pytest.mark.parametrize("seed", range(4))
def test_labels_are_what_was_done_and_none_reaches_into_a_disturbance(
    fake_env: FakeEnv, seed: int, learner: Policy | None
) -> None:
    """What was executed tells the expert's steps from the others, without the recorder's word for it."""
    demo = record(fake_env, seed, learner)  # type: ignore[arg-type]
    executed = np.stack(fake_env.executed)
    assert executed.shape == demo.actions_TJ.shape
    by_oracle = (executed == demo.actions_TJ).all(axis=1)
    assert by_oracle.any()
    assert not by_oracle.all(), "choose a seed with disturbances: this one tests nothing"
    moments, labels = [], []
    for step in range(0, len(executed), LOOK_EVERY):
        ahead = by_oracle[step : step + DIMS.action_horizon]
        undisturbed = len(ahead) if ahead.all() else int(ahead.argmin())
        if undisturbed >= MIN_LABELS:
            moments.append(step)
            labels.append(undisturbed)
    assert demo.steps_F.tolist() == moments
    assert demo.num_labels_F.tolist() == labels
    assert min(labels) < DIMS.action_horizon  # some span ends at a disturbance
    for step, count in zip(moments, labels, strict=True):
        span = slice(step, step + count)
        np.testing.assert_array_equal(demo.actions_TJ[span], executed[span])


@pytest.mark.parametrize("seed", range(2))
def test_a_moment_is_what_was_seen_before_its_first_action(fake_env: FakeEnv, seed: int) -> None:
    demo = record(fake_env, seed, None)  # type: ignore[arg-type]
    levels = demo.steps_F % 256
    for camera, shown in enumerate((levels, 255 - levels)):
        assert (demo.images_FNHWC[:, camera] == shown[:, None, None, None]).all()
    grips = np.stack(fake_env.grips)[demo.steps_F]
    np.testing.assert_array_equal(demo.truths_FX[:, -3:], grips)
    np.testing.assert_array_equal(demo.states_FS[:, :3], grips)


@pytest.mark.sim
def test_an_official_initial_state_is_refused(env: LiberoEnv) -> None:
    for seed in range(20):
        env.reset_randomly(seed)
        check_not_official(env)
    env.reset(EpisodeKey("libero_spatial", 0, 13, 7))
    with pytest.raises(ValueError, match="libero_spatial task 0 starts from an official initial state"):
        check_not_official(env)


@pytest.mark.parametrize("seed", range(3))
def test_an_episode_goes_on_after_success_until_the_hand_has_let_go_and_gone(
    fake_env: FakeEnv, seed: int
) -> None:
    demo = record(fake_env, seed, None)  # type: ignore[arg-type]
    assert demo.success
    first = fake_env.succeeded.index(True)
    assert len(demo.actions_TJ) == first + AFTERWARDS
    assert (demo.actions_TJ[-AFTERWARDS // 2 :, 6] == OPEN).all()
    assert np.linalg.norm(fake_env.grip - fake_env.bowl) > 0.1
    assert demo.steps_F.max() > first


def test_workers_share_the_seeds_and_a_run_that_is_cut_short_has_seen_every_task() -> None:
    num_tasks = {"libero_spatial": 10, "libero_goal": 10}
    for workers in (1, 15, 20, 60):
        jobs = plan_jobs(num_tasks, range(2000), workers)
        assert len(jobs) == workers
        assert sorted(job.seed for mine in jobs for job in mine) == list(range(2000))
        assert len({job.file for mine in jobs for job in mine}) == 2000
        early = {(job.suite, job.task_id) for mine in jobs for job in mine[: 800 // workers]}
        assert len(early) == 20
    tasks = {job.seed % 20: (job.suite, job.task_id) for job in jobs[7]}
    assert tasks[7] == ("libero_spatial", 7)


def test_labels_are_counted_up_to_a_disturbance_the_horizon_or_the_end() -> None:
    is_expert = [True] * 3 + [False] + [True] * 14
    assert [count_labels(is_expert, step) for step in (0, 2, 3, 4, 8, 16)] == [3, 1, 0, 10, 10, 2]


def test_the_learner_acts_only_where_it_takes_part_and_not_too_often() -> None:
    for seed in range(50):
        alone = plan_disturbances(np.random.default_rng(seed), 300, learner=False)
        assert all(disturbance.push is not None for _, disturbance in alone)
        joined = plan_disturbances(np.random.default_rng(seed), 300, learner=True)
        assert sum(disturbance.push is None for _, disturbance in joined) <= LEARNER_VISITS


def test_a_saved_demonstration_is_read_back_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    demo = Demo(
        suite="libero_goal",
        task_id=3,
        seed=5,
        success=True,
        images_FNHWC=rng.integers(0, 255, (4, 2, 16, 16, 3), dtype=np.uint8),
        states_FS=rng.normal(size=(4, 8)),
        truths_FX=rng.normal(size=(4, 9)),
        steps_F=np.arange(4) * 2,
        num_labels_F=np.full(4, 10),
        actions_TJ=rng.normal(size=(20, 7)),
    )
    save_demo(tmp_path / "demo.npz", demo)
    read = load_demo(tmp_path / "demo.npz")
    for name, value in vars(demo).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    blind = load_demo(tmp_path / "demo.npz", images=False)
    assert blind.images_FNHWC.shape == (0, 2, 16, 16, 3)
    np.testing.assert_array_equal(blind.truths_FX, demo.truths_FX)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.npz"]
