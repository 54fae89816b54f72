"""Clocks: which actions of which chunk are executed when, what is held, and what cannot be served."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from eval.episodes.clock import PERIOD_MS, CannotServe, Clock, Drawn, Fixed, Measured, Playback, Step
from eval.records.schema import to_json
from policies.base import EpisodeKey

KEY = EpisodeKey("libero_spatial", 0, 0, 7)


def chunk(number: int, horizon: int) -> np.ndarray:
    """A chunk whose action i is 100 * number + i in its first channel; the gripper closes."""
    actions = np.zeros((horizon, 7))
    actions[:, 0] = 100 * number + np.arange(horizon)
    actions[:, 6] = 1.0
    return actions


def executed(steps: Sequence[Step]) -> list[int | str]:
    """Each step as the number of its action, or as `hold`."""
    return ["hold" if step.age is None else int(step.action[0]) for step in steps]


def played(
    mode: str, delays: Sequence[float], s: int, horizon: int, speed: float = 1.0
) -> list[list[int | str]]:
    """The cycles of an episode whose inferences take so many control periods."""
    playback = Playback(Clock(mode, speed=speed), s)  # type: ignore[arg-type]
    period_ms = PERIOD_MS / speed
    return [executed(playback.plan(chunk(i + 1, horizon), d * period_ms)) for i, d in enumerate(delays)]


@pytest.mark.parametrize("mode", ["wait", "async", "rtc"])
def test_no_delay_is_free(mode: str) -> None:
    assert played(mode, [0, 0, 0], 3, 10) == played("free", [5, 5, 5], 3, 10)
    assert played("free", [0], 3, 10) == [[100, 101, 102]]


@pytest.mark.parametrize(
    ("d", "s", "horizon", "cycles"),
    [
        (
            1,
            3,
            10,
            [["hold", 100, 101], [102, 201, 202], [203, 301, 302], [303, 401, 402]],
        ),
        (
            2,
            5,
            10,
            [["hold", "hold", 100, 101, 102], [103, 104, 202, 203, 204], [205, 206, 302, 303, 304]],
        ),
        (
            5,
            5,
            10,
            [["hold"] * 5, [100, 101, 102, 103, 104], [205, 206, 207, 208, 209], [305, 306, 307, 308, 309]],
        ),
        (1, 1, 2, [["hold"], [100], [201], [301]]),
    ],
)
@pytest.mark.parametrize("mode", ["async", "rtc"])
def test_async_goes_on_with_the_old_chunk_while_the_new_one_is_computed(
    mode: str, d: int, s: int, horizon: int, cycles: list[list[int | str]]
) -> None:
    assert played(mode, [d] * len(cycles), s, horizon) == cycles


def test_async_follows_a_delay_that_changes() -> None:
    assert played("async", [2, 0, 3, 1], 4, 10) == [
        ["hold", "hold", 100, 101],
        [200, 201, 202, 203],
        [204, 205, 206, 303],
        [304, 401, 402, 403],
    ]


def test_wait_holds_whole_periods_and_keeps_what_is_left() -> None:
    assert played("wait", [0.5, 0.5, 2.4, 0.7], 2, 10) == [
        [100, 101],
        ["hold", 200, 201],
        ["hold", "hold", 300, 301],
        ["hold", 400, 401],  # 0.4 of a period was left
    ]


@pytest.mark.parametrize("speed", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(
    ("latency_ms", "delays"),
    [(8.5, {1.0: 1, 2.0: 1, 4.0: 1}), (15.0, {1.0: 1, 2.0: 1, 4.0: 2}), (184.0, {1.0: 4, 2.0: 8, 4.0: 15})],
)
def test_a_faster_robot_has_shorter_periods(
    latency_ms: float, delays: dict[float, int], speed: float
) -> None:
    assert Clock("async", speed=speed).delay(latency_ms) == delays[speed]


@pytest.mark.parametrize(("periods", "delay"), [(0, 0), (0.001, 1), (1, 1), (3, 3), (3.01, 4)])
@pytest.mark.parametrize("speed", [1.0, 3.0, 7.0])
def test_whole_periods_are_not_one_more(periods: float, delay: int, speed: float) -> None:
    assert Clock("async", speed=speed).delay(periods * PERIOD_MS / speed) == delay


def test_to_hold_keeps_the_gripper_as_it_was() -> None:
    playback = Playback(Clock("wait"), 1)
    [first, acted] = playback.plan(chunk(1, 4), PERIOD_MS)
    np.testing.assert_array_equal(first.action, [0, 0, 0, 0, 0, 0, -1])  # open, as in the settle steps
    [second, _] = playback.plan(chunk(2, 4), PERIOD_MS)
    np.testing.assert_array_equal(second.action, [0, 0, 0, 0, 0, 0, 1])
    assert (first.age, acted.age, second.age) == (None, 1, None)


def test_what_happened_is_counted() -> None:
    playback = Playback(Clock("async", speed=2.0), 5)
    for i in range(3):
        playback.refill(chunk(i + 1, 10), PERIOD_MS)
        while playback:
            playback.pop()
    statistics = playback.statistics
    assert statistics.held_steps == 2
    # first cycle: action 0 is executed 2 steps after its observation
    assert statistics.ages == [2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2, 3, 4]
    assert statistics.delays == [2, 2, 2]
    assert statistics.seams == [202 - 104, 302 - 206]
    record = statistics.record(playback.clock, 15)
    assert (record.mode, record.robot_s, record.held_steps) == ("async", 15 * 0.025, 2)
    assert (record.delay_mean, record.delay_max, record.age_max) == (2.0, 2, 6)
    assert record.seam_max == 98.0
    assert record.latency_mean_ms == PERIOD_MS
    assert json.loads(to_json(record, "record"))["age_mean"] == sum(statistics.ages) / 13


def test_an_episode_that_did_nothing_has_no_means() -> None:
    record = Playback(Clock("wait"), 5).statistics.record(Clock("wait"), 0)
    assert (record.delay_max, record.age_mean, record.seam_max) == (None, None, None)


def test_a_seam_is_seen_where_no_action_of_the_cycle_is_new() -> None:
    playback = Playback(Clock("async"), 5)
    for i in range(3):
        playback.plan(chunk(i + 1, 10), 5 * PERIOD_MS)
    assert playback.statistics.seams == [205 - 104]


def test_free_and_wait_execute_actions_as_old_as_they_are() -> None:
    free, wait = Playback(Clock("free"), 2), Playback(Clock("wait"), 2)
    assert [step.age for step in free.plan(chunk(1, 4), 80.0)] == [0, 1]
    assert [step.age for step in wait.plan(chunk(1, 4), 100.0)] == [None, None, 2, 3]


@pytest.mark.parametrize("mode", ["async", "rtc"])
@pytest.mark.parametrize(
    ("d", "s", "horizon", "message"),
    [
        (
            4,
            3,
            10,
            r"needs a delay of at most the replan steps, got d = 4 \(200 ms at 50 ms a step\) and s = 3",
        ),
        (3, 8, 10, r"needs s <= H - d actions of the old chunk, got s = 8, H = 10 and d = 3"),
    ],
)
def test_what_async_cannot_serve_is_refused_with_its_numbers(
    mode: str, d: int, s: int, horizon: int, message: str
) -> None:
    with pytest.raises(CannotServe, match=rf"^clock={mode} {message}"):
        played(mode, [d], s, horizon)
    assert played("wait", [d], s, horizon) == [["hold"] * d + [100 + i for i in range(s)]]


def test_replan_steps_that_are_in_reach_can_be_checked_before_any_chunk() -> None:
    Clock("async").check(200.0, 5, None)
    with pytest.raises(CannotServe):
        Clock("async").check(200.0, 3, None)


def test_latencies_come_from_a_number_a_bench_or_the_run() -> None:
    assert Fixed(12.5)(KEY, 3, 99.0) == 12.5
    assert Measured()(KEY, 3, 99.0) == 99.0
    samples = tuple(float(i) for i in range(50))
    drawn = [Drawn(samples)(KEY, call, 99.0) for call in range(200)]
    assert drawn == [Drawn(samples)(KEY, call, 1.0) for call in range(200)]
    assert len(set(drawn)) > 40
    other = EpisodeKey("libero_spatial", 0, 1, 7)
    assert drawn != [Drawn(samples)(other, call, 99.0) for call in range(200)]
