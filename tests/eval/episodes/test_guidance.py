"""Real-time chunking: towards which actions of the old chunk a new one is guided, and how strongly."""

import math

import numpy as np
import pytest

from eval.episodes.clock import PERIOD_MS, CannotServe, Clock, Fixed, Playback, guidance_weights
from policies.base import GuideOptions

GUIDE = GuideOptions(5.0)


def numbered(number: int, horizon: int) -> np.ndarray:
    """A normalised chunk whose row i holds 100 * number + i."""
    return np.full((horizon, 32), 100 * number + np.arange(horizon)[:, None], np.float32)


def old_rows(delays: list[int], s: int, horizon: int, speed: float = 1.0) -> list[list[float] | None]:
    """Towards what each cycle's chunk is guided."""
    playback, rows = Playback(Clock("rtc", speed=speed, guide=GUIDE), s), []
    for i, d in enumerate(delays):
        latency_ms = d * PERIOD_MS / speed
        guidance = playback.guidance(latency_ms)
        rows.append(None if guidance is None else guidance.old_HA[:, 0].tolist())
        playback.refill(
            numbered(i + 1, horizon)[:, :7].astype(np.float64), latency_ms, numbered(i + 1, horizon)
        )
        sent = []
        while playback:
            sent.append(float(playback.pop()[0]))
        if guidance is not None:  # what is sent while the robot waits is what the new chunk follows
            assert sent[:d] == guidance.old_HA[:d, 0].tolist()
            assert guidance.weights_H[:d].tolist() == [1.0] * d
    return rows


@pytest.mark.parametrize("speed", [1.0, 4.0])
@pytest.mark.parametrize(
    ("d", "s", "horizon", "second", "third"),
    [
        (2, 5, 10, [*range(103, 110), 0, 0, 0], [*range(205, 210), *[0] * 5]),
        (5, 5, 10, [*range(100, 110)], [*range(205, 210), *[0] * 5]),
        (1, 3, 8, [*range(102, 108), 0, 0], [*range(203, 208), 0, 0, 0]),
        (0, 4, 6, [104, 105, 0, 0, 0, 0], [204, 205, 0, 0, 0, 0]),
    ],
)
def test_the_old_chunk_is_shifted_to_what_is_left_of_it(
    d: int, s: int, horizon: int, second: list[int], third: list[int], speed: float
) -> None:
    """The first chunk was executed up to s - d, the others up to s."""
    assert old_rows([d] * 3, s, horizon, speed) == [None, second, third]


def test_a_delay_that_changes_is_followed() -> None:
    assert old_rows([3, 1, 4], 5, 10) == [None, [*range(102, 110), 0, 0], [*range(205, 210), *[0] * 5]]


def of_the_authors(start: int, end: int, total: int) -> np.ndarray:
    """The weights of their code, which counts from the delay (start) to where the old chunk ends (end)."""
    w = np.clip((start - 1 - np.arange(total)) / (end - start + 1) + 1, 0, 1)
    return np.where(np.arange(total) >= end, 0, w * np.expm1(w) / (math.e - 1))


@pytest.mark.parametrize(
    ("d", "left", "horizon"), [(0, 5, 10), (1, 5, 10), (4, 6, 10), (5, 5, 10), (3, 45, 50)]
)
def test_weights_are_those_of_the_authors(d: int, left: int, horizon: int) -> None:
    weights_H = guidance_weights(d, left, horizon)
    np.testing.assert_allclose(weights_H, of_the_authors(d, left, horizon), atol=1e-7)
    assert weights_H[:d].tolist() == [1.0] * d
    assert (np.diff(weights_H[max(d - 1, 0) : left + 1]) < 0).all()
    assert not weights_H[left:].any()


def test_one_soft_step_is_left_where_the_old_chunk_ends_after_the_delay() -> None:
    """d = 4, s = 5, H = 10: c = 1 / 2 at i = 4."""
    np.testing.assert_allclose(
        guidance_weights(4, 5, 10), [1, 1, 1, 1, 0.5 * math.expm1(0.5) / math.expm1(1), *[0] * 5], rtol=1e-6
    )


def test_only_rtc_guides() -> None:
    playback = Playback(Clock("async"), 5)
    playback.refill(numbered(1, 10)[:, :7].astype(np.float64), PERIOD_MS, numbered(1, 10))
    assert playback.guidance(PERIOD_MS) is None


def test_a_chunk_that_cannot_be_kept_is_refused() -> None:
    playback = Playback(Clock("rtc", guide=GUIDE), 5)
    with pytest.raises(CannotServe, match="clock=rtc needs chunks with normalised_HA"):
        playback.refill(np.zeros((10, 7)), PERIOD_MS)


@pytest.mark.parametrize(
    ("clock", "guidance", "message"),
    [
        (
            Clock("rtc", guide=GUIDE),
            None,
            "loaded with clock=rtc, beta=5, jacobian=identity, got one",
        ),
        (
            Clock("async"),
            {"beta": 5.0, "jacobian": "identity"},
            r"no guidance, got one with {'beta'",
        ),
        (Clock("rtc", guide=GUIDE), {"beta": 1.0, "jacobian": "identity"}, "got one with {'beta': 1.0"),
    ],
)
def test_a_policy_that_was_loaded_for_another_guidance_is_refused(
    clock: Clock, guidance: dict[str, object] | None, message: str
) -> None:
    with pytest.raises(CannotServe, match=message):
        clock.check_policy({"guidance": guidance})
    Clock("rtc", Fixed(50.0), guide=GUIDE).check_policy({"guidance": {"beta": 5.0, "jacobian": "identity"}})
