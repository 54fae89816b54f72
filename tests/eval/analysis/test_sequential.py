"""The test that may be read at any time holds its error rates, and reads pairs in one order."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from eval.analysis.sequential import ENOUGH, LAMBDAS, EarlyStop, PairedTest, read_pairs, reading_order
from eval.records.schema import EpisodeRecord
from eval.sim.plus import plus_tasks, start_of
from policies.base import EpisodeKey

RUNS = 700
LIMIT = 0.05 + 2.6 * (0.05 * 0.95 / RUNS) ** 0.5  # what 5 % of so many runs reach in 1 of 200 seeds


def keys(tasks: int, episodes: int, suite: str = "libero_spatial") -> list[EpisodeKey]:
    return [EpisodeKey(suite, task, episode, 7) for task in range(tasks) for episode in range(episodes)]


def decide(pairs: Sequence[tuple[bool, bool]], margin: float = 2.0) -> PairedTest:
    test = PairedTest(margin)
    for base, new in pairs:
        test.add(base, new)
    return test


def simulate(lost: Sequence[float], won: Sequence[float], pairs: int, seed: int) -> Counter[str]:
    """Decisions of `RUNS` runs whose pairs differ with these chances, task by task, in the seeded order."""
    order = [key.task_id for key in reading_order(keys(len(lost), pairs // len(lost)))]
    rng, decisions = np.random.default_rng(seed), Counter[str]()
    lost_of, won_of = np.array(lost)[order], np.array(won)[order]
    for _ in range(RUNS):
        draws = rng.random(len(order))
        test = PairedTest(2.0)
        for draw, bad, good in zip(draws.tolist(), lost_of.tolist(), won_of.tolist(), strict=True):
            test.add(base=draw < 1 - good, new=draw >= bad)  # both, but in the two tails
        decisions[test.decision] += 1
    return decisions


@pytest.mark.parametrize(
    ("lost", "won"),
    [
        ([0.02] * 10, [0.0] * 10),
        ([0.06] * 10, [0.04] * 10),
        ([0.0] * 9 + [0.2], [0.0] * 10),  # all of the loss in one task
        ([0.1] * 5 + [0.0] * 5, [0.0] * 5 + [0.06] * 5),
    ],
)
def test_at_the_margin_each_wrong_decision_comes_in_five_per_cent_of_runs_at_most(
    lost: list[float], won: list[float]
) -> None:
    assert np.mean(lost) - np.mean(won) == pytest.approx(0.02)
    decisions = simulate(lost, won, 200, seed=1)
    assert decisions["non-inferior"] / RUNS <= LIMIT
    assert decisions["inferior"] / RUNS <= LIMIT


def test_equal_policies_are_shown_and_harm_is_found_early() -> None:
    same = decide([(True, True)] * 500)
    assert (same.decision, same.pairs) == ("non-inferior", 206)
    assert simulate([0.15] * 10, [0.0] * 10, 100, seed=2)["inferior"] / RUNS > 0.9
    worse = decide([(True, False)] * 500)
    assert (worse.decision, worse.pairs) == ("inferior", 6)


def test_e_is_the_mean_over_lambdas_of_the_products() -> None:
    differences = [0, -1, 0, 1, 0, 0]
    test = decide([(d == -1, d == 1) for d in differences])
    expected = np.mean([np.prod([1 + rate * (d + 0.02) for d in differences]) for rate in LAMBDAS])
    mirrored = np.mean([np.prod([1 + rate * (-d - 0.02) for d in differences]) for rate in LAMBDAS])
    assert test.non_inferior == pytest.approx(expected, rel=1e-12)
    assert test.inferior == pytest.approx(mirrored, rel=1e-12)


def test_a_large_margin_never_makes_the_evidence_negative() -> None:
    for pattern in itertools.product([(True, False), (False, True), (True, True)], repeat=5):
        test = decide(pattern, margin=40.0)
        assert test.inferior >= 0
        assert test.non_inferior >= 0


def test_a_decision_stays_whatever_follows() -> None:
    pairs = [(True, True)] * 206
    assert decide([*pairs, *[(True, False)] * 50]).decision == "non-inferior"
    assert decide(pairs).non_inferior >= ENOUGH > decide(pairs[1:]).non_inferior


def test_the_order_is_balanced_seeded_and_that_of_its_prefix() -> None:
    every = keys(10, 50)
    order = reading_order(every)
    assert sorted(order) == every != order
    for start in range(0, 500, 10):
        assert sorted(key.task_id for key in order[start : start + 10]) == list(range(10))
    assert reading_order(random.Random(0).sample(every, len(every))) == order
    assert reading_order([EpisodeKey(k.suite, k.task_id, k.episode, 8) for k in every]) != order
    assert reading_order(order[:100]) == order[:100]


def test_tasks_of_plus_are_balanced_over_base_tasks() -> None:
    suite = "libero_spatial_plus_camera"
    order = reading_order(
        [EpisodeKey(suite, task.task_id, 0, 7) for task in plus_tasks("libero_spatial", "camera")]
    )
    counts = Counter(start_of(suite, key.task_id) for key in order)
    first = Counter(start_of(suite, key.task_id) for key in order[: len(order) // 2])
    assert all(abs(first[base] - count / 2) <= 1 for base, count in counts.items())
    with pytest.raises(ValueError, match="libero_spatial_plus_camera has no task 99999"):
        start_of(suite, 99999)


def test_pairs_are_read_in_their_order_however_they_end() -> None:
    every = keys(2, 20)
    stop = EarlyStop(every, dict.fromkeys(every, True), 90.0)
    for key in stop.order[1:]:  # a success is over sooner than a failure
        stop.add(key, True)
    assert (stop.test.pairs, stop.decided) == (0, False)
    stop.add(stop.order[0], False)
    assert stop.decided
    in_order = EarlyStop(every, dict.fromkeys(every, True), 90.0)
    for key in in_order.order:
        in_order.add(key, key != stop.order[0])
    assert in_order.to_dict() == stop.to_dict()


def test_an_episode_that_raised_counts_against_each_decision() -> None:
    raised, worse, better = PairedTest(2.0), PairedTest(2.0), PairedTest(2.0)
    raised.add(True, None)
    worse.add(True, False)
    better.add(True, True)
    assert raised.non_inferior == worse.non_inferior
    assert raised.inferior == better.inferior


def test_a_base_that_lacks_an_episode_cannot_be_run_against() -> None:
    with pytest.raises(ValueError, match=r"^no outcome of libero_spatial-task1-episode1-seed7$"):
        EarlyStop(keys(2, 2), dict.fromkeys(keys(2, 2)[:-1], True), 2.0)


def test_reading_ends_at_the_first_pair_that_is_missing(make_episode: Callable[..., EpisodeRecord]) -> None:
    every = keys(2, 3)
    records = {key: make_episode(task_id=key.task_id, episode=key.episode) for key in every}
    order = reading_order(every)
    some = {key: records[key] for key in order if key != order[4]}
    read = read_pairs(every, records, some, 2.0, stopped=False)
    assert (read.pairs, read.planned, read.missing) == (4, 6, str(order[4]))
    assert read_pairs(every, records, records, 2.0, stopped=False).missing is None
