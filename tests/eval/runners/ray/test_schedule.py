"""Which episode comes next, and which requests go together."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.records.episodes import Episodes, Shard
from eval.runners.ray.schedule import Schedule
from eval.specs.batching import Batching, powers_of_two
from policies.base import EpisodeKey


def keys(task: int, count: int) -> list[EpisodeKey]:
    return [EpisodeKey("libero_spatial", task, episode, 7) for episode in range(count)]


def test_the_longest_task_begins_first() -> None:
    schedule = Schedule([keys(0, 4), keys(1, 4), keys(2, 4)])
    for task, seconds in ((0, 10.0), (1, 30.0), (2, 20.0)):
        schedule.learn(keys(task, 1)[0], seconds)
    first = [schedule.next(worker) for worker in range(3)]
    assert [key.task_id for key in first if key] == [1, 2, 1]  # 120 s, 80 s, then half of what 1 has left


def test_a_worker_stays_with_its_task_until_nothing_of_it_is_left() -> None:
    schedule = Schedule([keys(0, 3), keys(1, 2)])
    taken = [schedule.next("only") for _ in range(5)]
    assert [key.task_id for key in taken if key] == [0, 0, 0, 1, 1]
    assert schedule.next("only") is None


def test_a_worker_begins_with_the_task_that_it_has_an_environment_for_while_that_waits() -> None:
    schedule = Schedule([keys(0, 3), keys(1, 1)], {7: 1, 8: 1})
    taken = [schedule.next(worker) for worker in (7, 8)]
    assert [key.task_id for key in taken if key] == [1, 0]


def test_an_episode_that_is_put_back_comes_again() -> None:
    schedule = Schedule([keys(0, 2)])
    first = schedule.next("a")
    assert first is not None
    schedule.put_back(first)
    assert [schedule.next("b"), schedule.next("b"), schedule.next("b")] == [*keys(0, 2), None]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.lists(st.integers(0, 3), max_size=60))
def test_every_episode_comes_once(counts: list[int], workers: list[int]) -> None:
    schedule = Schedule(keys(task, count) for task, count in enumerate(counts))
    taken = [schedule.next(worker) for worker in [*workers, *[0] * sum(counts)]]
    assert Counter(filter(None, taken)) == Counter(
        key for task, count in enumerate(counts) for key in keys(task, count)
    )


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6))
def test_shards_are_the_whole_without_overlap(shards: int, tasks: int, count: int) -> None:
    whole = Episodes("libero_spatial", tuple(range(tasks)), 0, count, 7)
    parts = [Episodes(**{**vars(whole), "shard": Shard(i + 1, shards)}) for i in range(shards)]
    assert [key for part in parts for key in part.keys()] == list(whole.keys())  # noqa: SIM118
    sizes = [len(part.keys()) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(Episodes.from_dict(part.to_dict()) == part for part in parts)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^shard must be i/n with 1 <= i <= n, as in 1/4, got "):
        Shard.parse(text)


@given(st.lists(st.integers(0, 2), max_size=20), st.integers(1, 8))
def test_batches_hold_every_request_once_in_allowed_sizes(shapes: list[int], most: int) -> None:
    sizes = powers_of_two(most)
    batching = Batching(sizes, lambda request: request)  # type: ignore[arg-type, return-value]
    batches = list(batching.split(list(enumerate(shapes)), lambda item: item[1]))  # type: ignore[arg-type, return-value]
    assert sorted(item for batch in batches for item in batch) == list(enumerate(shapes))
    assert {len(batch) for batch in batches} <= set(sizes)
    assert all(len({shape for _, shape in batch}) == 1 for batch in batches)


def test_sizes_are_few() -> None:
    assert [powers_of_two(most) for most in (1, 2, 7, 8)] == [(1,), (1, 2), (1, 2, 4), (1, 2, 4, 8)]


def test_a_worker_stays_with_a_scene_of_many_tasks() -> None:
    schedule = Schedule([keys(task, 1) for task in range(4)], {}, {0: "a", 1: "b", 2: "a", 3: "b"})
    taken = [schedule.next("only") for _ in range(4)]
    assert [key.task_id for key in taken if key] == [0, 2, 1, 3]
    schedule.put_back(keys(2, 1)[0])
    schedule.learn(keys(2, 1)[0], 5.0)
    assert schedule.next("another") == keys(2, 1)[0]
