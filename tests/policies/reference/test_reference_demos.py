"""Demonstrations: pure functions of their seed, never from an official initial state, labels only from the
oracle."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval.libero_env import LiberoEnv, load_tasks
from policies.base import EpisodeKey
from policies.reference.demos import (
    LEARNER_VISITS,
    LOOK_EVERY,
    MIN_LABELS,
    Demo,
    check_not_official,
    count_labels,
    load_demo,
    plan_disturbances,
    record,
    save_demo,
)
from policies.reference.sizes import DIMS


@pytest.fixture
def env(simulator: dict[str, str]) -> Iterator[LiberoEnv]:
    env = LiberoEnv(load_tasks("libero_spatial")[0])
    yield env
    env.close()


@pytest.mark.sim
def test_a_demonstration_is_successful_and_labels_are_what_was_done(env: LiberoEnv) -> None:
    demo = record(env, seed=0, learner=None)
    again = record(env, seed=0, learner=None)
    assert demo.success
    np.testing.assert_array_equal(demo.actions_TJ, again.actions_TJ)
    np.testing.assert_array_equal(demo.images_FNHWC, again.images_FNHWC)
    assert demo.images_FNHWC.shape == (len(demo.steps_F), 2, DIMS.image_size, DIMS.image_size, 3)
    assert (demo.steps_F % LOOK_EVERY == 0).all()
    assert demo.num_labels_F.min() >= MIN_LABELS
    assert np.abs(demo.actions_TJ).max() <= 1.0


@pytest.mark.sim
def test_an_official_initial_state_is_refused(env: LiberoEnv) -> None:
    for seed in range(20):
        env.reset_randomly(seed)
        check_not_official(env)
    env.reset(EpisodeKey("libero_spatial", 0, 13, 7))
    with pytest.raises(ValueError, match="task 0 starts from an official initial state"):
        check_not_official(env)


def test_labels_are_counted_up_to_a_disturbance_the_horizon_or_the_end() -> None:
    is_expert = [True] * 3 + [False] + [True] * 14
    assert [count_labels(is_expert, step) for step in (0, 2, 3, 4, 8, 16)] == [3, 1, 0, 10, 10, 2]


def test_the_learner_acts_only_where_it_takes_part_and_not_too_often() -> None:
    for seed in range(50):
        alone = plan_disturbances(np.random.default_rng(seed), learner=False)
        assert all(disturbance.push is not None for _, disturbance in alone)
        joined = plan_disturbances(np.random.default_rng(seed), learner=True)
        assert sum(disturbance.push is None for _, disturbance in joined) <= LEARNER_VISITS


def test_a_saved_demonstration_is_read_back_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    demo = Demo(
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
    assert [path.name for path in tmp_path.iterdir()] == ["demo.npz"]
