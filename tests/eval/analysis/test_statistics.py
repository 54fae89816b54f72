"""Paired statistics against published examples, and what must hold of any counts."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eval.analysis.statistics import (
    Interval,
    PairedCounts,
    by_cluster,
    episodes_needed,
    mcnemar_exact,
    median_ratio,
    newcombe,
    smallest_difference,
    smallest_margin,
    verdict,
    wilson,
)

COUNTS = st.builds(
    PairedCounts, *[st.integers(0, 60)] * 3, st.integers(1, 60)
) | st.builds(PairedCounts, st.integers(1, 600), *[st.integers(0, 6)] * 3)  # fmt: skip
LATENCIES = st.dictionaries(
    st.integers(0, 8), st.lists(st.floats(0.5, 500.0), max_size=5), min_size=1, max_size=8
)


def swapped(counts: PairedCounts) -> PairedCounts:
    return PairedCounts(counts.both, counts.won, counts.lost, counts.neither)


@pytest.mark.parametrize(
    ("both", "won", "lost", "neither", "difference", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10
        (36, 12, 2, 0, 0.2000, 0.0569, 0.3404),
        # Altman, Machin, Bryant, Gardner 2000, Statistics with Confidence, table 6.2
        (14, 5, 0, 22, 0.122, 0.0115, 0.2265),
        # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33, 2850-2875: data of Bentur et al.
        (1, 1, 7, 12, -0.2857, -0.5069, -0.0256),
        # Fagerland, Lydersen, Laake 2017, Statistical Analysis of Contingency Tables, chapter 8: Cavo et al.
        (59, 6, 16, 80, -0.0621, -0.1186, -0.0046),
    ],
)
def test_the_paired_interval_is_newcombes_method_10(
    both: int, won: int, lost: int, neither: int, difference: float, low: float, high: float
) -> None:
    counts = PairedCounts(both, lost, won, neither)
    assert counts.difference == pytest.approx(difference, abs=6e-4)
    assert newcombe(counts).low == pytest.approx(low, abs=6e-5)
    assert newcombe(counts).high == pytest.approx(high, abs=6e-5)


@pytest.mark.parametrize(
    ("won", "lost", "p", "tolerance"),
    [
        (12, 2, 0.0129, 5e-5),  # Armitage and Berry 1994, Statistical Methods in Medical Research, p. 127
        (1, 7, 0.0703, 5e-5),  # Bentur et al. in Fagerland, Lydersen, Laake 2013, BMC Med. Res. Meth. 13:91
        (6, 16, 0.0525, 5e-5),  # Cavo et al., ibid.
        (0, 5, 0.0625, 1e-12),  # 2 / 2^5
        (0, 6, 0.03125, 1e-12),
        (3, 3, 1.0, 1e-12),
        (0, 0, 1.0, 0.0),
    ],
)
def test_mcnemar_is_the_exact_sign_test_of_the_discordant_pairs(
    won: int, lost: int, p: float, tolerance: float
) -> None:
    assert mcnemar_exact(PairedCounts(50, lost, won, 50)) == pytest.approx(p, abs=tolerance)


def test_agrestis_approval_ratings_changed() -> None:
    # Categorical Data Analysis, 2nd edition 2002, section 10.1: z^2 = 17.36, -0.04 (-0.06 to -0.02)
    counts = PairedCounts(794, 150, 86, 570)
    assert mcnemar_exact(counts) < 1e-4
    assert counts.difference == -0.04
    assert (round(newcombe(counts).low, 2), round(newcombe(counts).high, 2)) == (-0.06, -0.02)


def test_full_agreement_still_has_a_width() -> None:
    interval = newcombe(PairedCounts(100, 0, 0, 0))
    assert interval.low == pytest.approx(-(1.959964**2) / (100 + 1.959964**2))  # 1 - Wilson's lower limit
    assert interval.low == pytest.approx(wilson(100, 100).low - 1)
    assert interval.high == -interval.low
    assert verdict(interval, 2.0) == "not shown"


def test_189_episodes_are_the_first_that_can_show_two_points() -> None:
    assert episodes_needed(2.0) == 189
    assert verdict(newcombe(PairedCounts(189, 0, 0, 0)), 2.0) == "non-inferior"
    assert verdict(newcombe(PairedCounts(188, 0, 0, 0)), 2.0) == "not shown"


def test_a_limit_on_the_margin_shows_nothing() -> None:
    assert verdict(Interval(-0.02, 0.01), 2.0) == "not shown"
    assert verdict(Interval(math.nextafter(-0.02, 0), 0.01), 2.0) == "non-inferior"
    assert verdict(Interval(-0.10, -0.02), 2.0) == "not shown"
    assert verdict(Interval(-0.10, math.nextafter(-0.02, -1)), 2.0) == "inferior"


def test_six_discordant_pairs_are_the_fewest_that_show_a_difference() -> None:
    assert smallest_difference(100) == 0.06
    assert smallest_difference(6) == 1.0
    assert smallest_difference(5) is None


def test_the_smallest_margin_is_that_of_full_agreement() -> None:
    assert smallest_margin(100, 100) == pytest.approx(0.0370, abs=5e-5)
    assert smallest_margin(100, 97) == -newcombe(PairedCounts(97, 0, 0, 3)).low


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (-1, 2, 0, 0)])
def test_no_pairs_and_negative_counts_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="paired counts"):
        PairedCounts(*counts)


@settings(max_examples=200, deadline=None)
@given(counts=COUNTS)
def test_intervals_hold_the_estimate_and_turn_around_with_the_runs(counts: PairedCounts) -> None:
    interval, other = newcombe(counts), newcombe(swapped(counts))
    assert -1.0 - 1e-12 <= interval.low <= counts.difference <= interval.high <= 1.0 + 1e-12
    assert (other.low, other.high) == (pytest.approx(-interval.high), pytest.approx(-interval.low))
    assert mcnemar_exact(counts) == pytest.approx(mcnemar_exact(swapped(counts)))


def test_one_task_and_no_difference_have_no_interval_between_tasks() -> None:
    assert by_cluster({0: [1, -1, 0]}) is None
    assert by_cluster({0: [0, 0], 1: [0]}) is None
    assert by_cluster({0: [1], 1: []}) is None
    assert by_cluster({0: [1, -1], 1: [0]}) is None


def test_with_two_tasks_the_interval_is_their_range() -> None:
    assert by_cluster({0: [0] * 10, 1: [-1] * 3 + [0] * 7}) == Interval(-0.3, 0.0)


def test_a_gain_in_one_task_does_not_count_against_it() -> None:
    interval = by_cluster({task: [1] * 3 + [0] * 7 if task == 4 else [0] * 10 for task in range(10)})
    assert interval is not None
    assert interval.low == 0.0


def test_harm_to_one_task_counts_though_another_gains_as_much() -> None:
    differences = {task: [0] * 50 for task in range(10)}
    differences[2], differences[7] = [-1] * 10 + [0] * 40, [1] * 10 + [0] * 40
    clustered = by_cluster(differences)
    assert clustered is not None
    assert clustered.low < -0.03
    assert newcombe(PairedCounts(480, 10, 10, 0)).low > -0.02


def test_the_clustered_interval_of_ten_tasks_is_as_wide_as_students_t() -> None:
    rng = np.random.default_rng(3)
    means = rng.permutation(np.arange(-9, 10, 2)) / 1.0
    clustered = by_cluster({task: [int(mean)] * 5 for task, mean in enumerate(means)})
    assert clustered is not None
    half = 2.262 * means.std(ddof=1) / math.sqrt(10)  # t, 9 degrees of freedom
    assert clustered.high == pytest.approx(half, rel=0.1)
    assert clustered.low == pytest.approx(-half, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(
    differences=st.dictionaries(
        st.integers(0, 9), st.lists(st.integers(-1, 1), min_size=1, max_size=6), min_size=2, max_size=10
    ),
    data=st.data(),
)
def test_the_clustered_interval_ignores_order_and_turns_around(
    differences: dict[int, list[int]], data: st.DataObject
) -> None:
    interval = by_cluster(differences)
    assume(interval is not None)
    assert interval is not None
    everything = [value for values in differences.values() for value in values]
    assert interval.low <= sum(everything) / len(everything) <= interval.high
    order = data.draw(st.permutations(sorted(differences)))
    assert by_cluster({key: differences[key][::-1] for key in order}) == interval
    other = by_cluster({key: [-value for value in values] for key, values in differences.items()})
    assert other is not None
    assert other.low == pytest.approx(-interval.high, abs=1e-12)
    assert other.high == pytest.approx(-interval.low, abs=1e-12)


def test_the_ratio_is_of_the_medians_and_above_one_for_faster() -> None:
    ratio = median_ratio({0: [100.0, 104.0], 1: [96.0]}, {0: [50.0], 1: [52.0, 48.0, 400.0]})
    assert ratio is not None
    assert (ratio.base_p50, ratio.new_p50, ratio.base_n, ratio.new_n, ratio.episodes) == (
        100.0,
        51.0,
        3,
        4,
        2,
    )
    assert ratio.ratio == 100.0 / 51.0
    assert ratio.interval is not None
    assert ratio.interval.low < ratio.ratio < ratio.interval.high


def test_latencies_of_one_episode_have_no_interval_and_none_no_ratio() -> None:
    one = median_ratio({0: [100.0, 101.0], 1: [5.0]}, {0: [50.0], 1: []})
    assert one is not None
    assert (one.episodes, one.base_n, one.interval) == (1, 2, None)
    assert median_ratio({0: [1.0]}, {1: [1.0]}) is None


def test_inferences_that_move_with_their_episode_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    of_episode = rng.normal(100, 10, size=20)
    clustered = {i: [float(ms)] * 15 for i, ms in enumerate(of_episode)}
    mixed = {i: [float(ms) for ms in rng.normal(100, 10, size=15)] for i in range(20)}
    steady = {i: [50.0] * 15 for i in range(20)}
    wide, narrow = median_ratio(clustered, steady), median_ratio(mixed, steady)
    assert wide is not None
    assert narrow is not None
    assert wide.interval is not None
    assert narrow.interval is not None
    assert wide.interval.high - wide.interval.low > 2 * (narrow.interval.high - narrow.interval.low)


@settings(max_examples=50, deadline=None)
@given(base=LATENCIES, new=LATENCIES)
def test_the_ratio_of_swapped_runs_is_the_inverse(
    base: dict[int, list[float]], new: dict[int, list[float]]
) -> None:
    ratio, other = median_ratio(base, new), median_ratio(new, base)
    if ratio is None or other is None:
        assert ratio is other
        return
    assert other.ratio == pytest.approx(1 / ratio.ratio)
    if ratio.interval is None or other.interval is None:
        assert ratio.interval is other.interval
        return
    assert ratio.interval.low <= ratio.ratio * (1 + 1e-12)
    assert ratio.ratio <= ratio.interval.high * (1 + 1e-12)
    assert other.interval.low == pytest.approx(1 / ratio.interval.high)
    assert other.interval.high == pytest.approx(1 / ratio.interval.low)
    backwards = {key: base[key][::-1] for key in reversed(list(base))}
    assert median_ratio(backwards, new) == ratio
