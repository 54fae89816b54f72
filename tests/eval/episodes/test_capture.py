"""Captured requests are real and have every input shape that a run can meet."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eval.episodes import capture
from eval.episodes.capture import collect_requests, example_requests
from eval.records.observations import spread
from eval.sim.env import CAMERAS
from eval.sim.tasks import Task, load_tasks
from optim.eager import eager_stages
from policies.base import EpisodeKey, Observation
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.policy import Pi05Policy
from tests.optim.small import random_checkpoint

SPATIAL = load_tasks("libero_spatial")


class FakeEnv:
    """An environment that draws its pixels and ends its episodes after `length` steps."""

    built: ClassVar[list["FakeEnv"]] = []
    length = 12

    def __init__(self, task: Task) -> None:
        self.task, self.keys, self.closed = task, list[EpisodeKey](), False
        self.built.append(self)

    def reset(self, key: EpisodeKey) -> None:
        if not 0 <= key.episode < len(self.task.init_states):
            raise ValueError(f"episode {key.episode} has no initial state")
        self.keys.append(key)
        self.steps = 0

    def observe(self, cameras: tuple[str, ...]) -> Observation:
        rng = np.random.default_rng([self.task.task_id, len(self.keys), self.steps])
        images = {name: rng.integers(1, 256, (32, 32, 3), dtype=np.uint8) for name in cameras}
        return Observation(images, rng.uniform(-0.5, 0.5, 8), self.task.language)

    def step(self, action: NDArray[np.float64]) -> bool:
        self.steps += 1
        return self.steps >= self.length

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeEnv]]:
    monkeypatch.setattr(capture, "LiberoEnv", FakeEnv)
    FakeEnv.built.clear()
    yield FakeEnv
    assert all(env.closed for env in FakeEnv.built)


def policy_of(checkpoint: Checkpoint, form: str = "lean", prompt_multiple: int = 1) -> Pi05Policy:
    return Pi05Policy.from_checkpoint(
        checkpoint, eager_stages(checkpoint.stages), name="test", form=form, prompt_multiple=prompt_multiple
    )


@pytest.fixture(scope="module")
def stateless() -> Checkpoint:
    return random_checkpoint()


@pytest.fixture(scope="module", params=["openpi", "lerobot"])
def with_state(request: pytest.FixtureRequest) -> Checkpoint:
    if request.param == "openpi":
        return random_checkpoint(state_in_prompt=True, state_prompt_dims=8)
    return random_checkpoint(state_in_prompt=True, state_prompt_dims=32, norm_mode="mean_std")


def lengths(requests: list[Any], policy: Pi05Policy) -> list[int]:
    return [policy.preprocess.prompt_length(request.observation, policy.form) for request in requests]


def length_of(policy: Pi05Policy, instruction: str, state: NDArray[np.float64]) -> int:
    images = {name: np.zeros((1, 1, 3), np.uint8) for name in policy.cameras}
    return policy.preprocess.prompt_length(Observation(images, state, instruction), policy.form)


@pytest.mark.parametrize(("form", "multiple"), [("lean", 1), ("lean", 8), ("full", 1)])
def test_there_is_one_request_with_real_images_for_each_prompt_length_of_the_tasks(
    form: str, multiple: int, stateless: Checkpoint, fake: type[FakeEnv]
) -> None:
    policy = policy_of(stateless, form, multiple)
    requests = example_requests(SPATIAL, policy, seed=3)
    wanted = {length_of(policy, task.language, np.zeros(8)) for task in SPATIAL}
    assert len(wanted) == {("lean", 1): 7, ("lean", 8): 2, ("full", 1): 1}[form, multiple]
    assert sorted(lengths(requests, policy)) == sorted(wanted)
    start = EpisodeKey("libero_spatial", 0, 0, 3)
    assert [env.keys for env in fake.built] == [[start]]
    assert {(r.episode, r.call) for r in requests} == {(start, 0)}
    assert {r.observation.instruction for r in requests} <= {task.language for task in SPATIAL}


@pytest.mark.parametrize("multiple", [1, 16])
def test_a_state_in_the_prompt_is_covered_in_every_length_that_it_can_give(
    multiple: int, with_state: Checkpoint, fake: type[FakeEnv]
) -> None:
    policy = policy_of(with_state, prompt_multiple=multiple)
    tasks = SPATIAL[:3]
    covered = set(lengths(example_requests(tasks, policy, seed=3), policy))
    rng = np.random.default_rng(0)
    bins = [rng.choice([-9, 0, 5, 30, 99, 100, 255, 400], 8) for _ in range(200)]
    # the shortest and the longest that there are, and many between: below and above the statistics too
    bins += [np.zeros(8), np.full(8, 255), *np.eye(8) * 60]
    met = {length_of(policy, task.language, (row + 0.5) / 128 - 1) for task in tasks for row in bins}
    assert met <= covered
    assert {min(met), max(met)} == {min(covered), max(covered)}


def test_states_are_replaced_and_images_are_not(with_state: Checkpoint, fake: type[FakeEnv]) -> None:
    policy = policy_of(with_state)
    requests = example_requests(SPATIAL[:1], policy, seed=3)
    [env] = fake.built
    env.steps = 0
    real = env.observe(policy.cameras)
    assert len(requests) == 17  # 8 numbers of one digit, then one digit more each
    assert sum(np.array_equal(r.observation.state, real.state) for r in requests) == 1
    for request in requests:
        for name in policy.cameras:
            assert np.array_equal(request.observation.images[name], real.images[name])


def test_collected_requests_are_spread_over_tasks_and_over_an_episode(
    stateless: Checkpoint, fake: type[FakeEnv]
) -> None:
    policy = policy_of(stateless)
    requests = collect_requests(SPATIAL, policy, seed=5, count=24, max_steps=220)
    per_task = [sum(r.episode.task_id == i for r in requests) for i in range(10)]
    assert per_task == [3, 3, 3, 3, 2, 2, 2, 2, 2, 2]
    assert {r.call for r in requests} == {0, 1, 2}  # 12 steps, one inference every 5
    assert len({(r.episode, r.call) for r in requests}) == 24


def test_more_tasks_than_requests_still_meet_whole_episodes(
    stateless: Checkpoint, fake: type[FakeEnv]
) -> None:
    requests = collect_requests(SPATIAL, policy_of(stateless), seed=5, count=5, max_steps=220)
    assert [r.episode.task_id for r in requests] == [0, 2, 4, 6, 8]
    assert {r.call for r in requests} == {0, 1, 2}


def test_short_episodes_are_followed_by_more(stateless: Checkpoint, fake: type[FakeEnv]) -> None:
    requests = collect_requests(SPATIAL[:1], policy_of(stateless), seed=5, count=8, max_steps=6)
    assert [(r.episode.episode, r.call) for r in requests] == [(i, call) for i in range(4) for call in (0, 1)]


def test_an_environment_is_closed_when_its_episode_raises(
    stateless: Checkpoint, fake: type[FakeEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeEnv, action: NDArray[np.float64]) -> bool:
        raise RuntimeError("physics")

    monkeypatch.setattr(FakeEnv, "step", fail)
    with pytest.raises(RuntimeError, match="physics"):
        collect_requests(SPATIAL[:1], policy_of(stateless), seed=5, count=8, max_steps=6)
    assert [env.closed for env in fake.built] == [True]


def test_spread_takes_different_items_at_equal_distances() -> None:
    assert spread(range(20), 4) == [0, 5, 10, 15]
    assert spread(range(20), 4, phase=0.99) == [4, 9, 14, 19]
    for phase in (0.0, 0.05, 0.95):
        assert spread(range(7), 7, phase) == list(range(7))


@pytest.mark.sim
def test_examples_and_collected_requests_come_from_the_simulator(
    simulator: dict[str, str], stateless: Checkpoint
) -> None:
    policy = policy_of(stateless)
    [example] = example_requests(SPATIAL[4:5], policy, seed=7)
    collected = collect_requests(SPATIAL[4:5], policy, seed=7, count=2, max_steps=10)
    assert [(r.episode, r.call) for r in collected] == [(example.episode, 0), (example.episode, 1)]
    for name in CAMERAS:
        start, later = (r.observation.images[name] for r in collected)
        assert np.array_equal(example.observation.images[name], start)
        assert not np.array_equal(start, later)
        assert start.shape == (256, 256, 3)
        assert start.std() > 10
