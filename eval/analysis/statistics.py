"""Paired statistics: what two policies on the same episodes say of their difference, as pure functions.

Differences are NEW - BASE, as fractions; intervals are two-sided at 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
RESAMPLES_OF_CLUSTERS, RESAMPLES_OF_LATENCIES = 10_000, 2_000
SEED = 0  # of the resamples: the same records give the same interval
ROWS = 100  # resamples at a time, so that memory stays small

Verdict = Literal["non-inferior", "not shown", "inferior"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    def hull(self, other: "Interval | None") -> "Interval":
        """The smallest interval that holds both."""
        if other is None:
            return self
        return Interval(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class PairedCounts:
    """Episodes that both policies finished, by who succeeded.

    Attributes:
        both, neither: in which they agree.
        lost: BASE alone succeeded; won: NEW alone did.

    Raises:
        ValueError: there are none, or a count is negative.
    """

    both: int
    lost: int
    won: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.lost, self.won, self.neither) < 0 or self.n == 0:
            raise ValueError(f"paired counts must be >= 0 with one > 0, got {self}")

    @property
    def n(self) -> int:
        return self.both + self.lost + self.won + self.neither

    @property
    def difference(self) -> float:
        return (self.won - self.lost) / self.n


@dataclass(frozen=True)
class Ratio:
    """BASE's median over NEW's, 2 for twice as fast; `interval` is None with fewer than two episodes."""

    base_p50: float
    new_p50: float
    ratio: float
    interval: Interval | None
    base_n: int
    new_n: int
    episodes: int


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion, without continuity correction.

    Wilson 1927, JASA 22, 209-212. Written out, because importing scipy takes longer than a summary.
    """
    centre = successes + Z**2 / 2
    half = Z * math.sqrt(successes * (n - successes) / n + Z**2 / 4)
    low = 0.0 if successes == 0 else (centre - half) / (n + Z**2)
    high = 1.0 if successes == n else (centre + half) / (n + Z**2)
    return Interval(low, high)


def mcnemar_exact(counts: PairedCounts) -> float:
    """The two-sided exact P of McNemar's test: that the discordant pairs fall so unevenly by chance.

    The sign test of the discordant pairs (Agresti, Categorical Data Analysis, section 10.1); 1 without any.
    """
    from scipy.stats import binomtest  # half a second, which `eval.summary` does not need

    discordant = counts.lost + counts.won
    return float(binomtest(counts.won, discordant).pvalue) if discordant else 1.0


def newcombe(counts: PairedCounts) -> Interval:
    """The interval of the paired difference, Newcombe's method 10.

    Wilson's intervals of both proportions, joined by square-and-add with the correlation phi, which is
    continuity-corrected where it is positive (Newcombe 1998, Statistics in Medicine 17, 2635-2650). It has a
    width even where all pairs agree.
    """
    both, won, lost, neither, n = counts.both, counts.won, counts.lost, counts.neither, counts.n
    new, base = wilson(both + won, n), wilson(both + lost, n)
    p_new, p_base = (both + won) / n, (both + lost) / n
    product = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    cross: float = both * neither - won * lost
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    phi = cross / math.sqrt(product) if product else 0.0
    below = _square_and_add(p_new - new.low, base.high - p_base, phi)
    above = _square_and_add(new.high - p_new, p_base - base.low, phi)
    return Interval(counts.difference - below, counts.difference + above)


def by_cluster(differences: Mapping[Any, Sequence[int]]) -> Interval | None:
    """The interval of the mean difference when whole clusters are drawn again.

    Args:
        differences: of each cluster (a task), by a key that can be sorted, those of its pairs.

    The percentiles of the bootstrap over clusters, moved outwards as far as Student's t lies outside the
    normal (Hesterberg 2015, The American Statistician 69, 371-386, "expanded percentile"). With few clusters
    it is the range of the means of single clusters. It is None with one cluster, and where the mean of each
    is zero, as without a pair that differs: a width of zero would say more than is known.
    """
    clusters = [differences[key] for key in sorted(differences) if differences[key]]
    if len(clusters) < 2 or not any(sum(cluster) for cluster in clusters):
        return None
    totals = np.array([sum(cluster) for cluster in clusters], dtype=np.float64)
    sizes = np.array([len(cluster) for cluster in clusters], dtype=np.float64)
    weights = _resamples(len(clusters), RESAMPLES_OF_CLUSTERS)
    estimate = float(totals.sum() / sizes.sum())
    return _percentiles((weights @ totals) / (weights @ sizes), len(clusters), estimate)


def verdict(interval: Interval, margin_points: float) -> Verdict:
    """Judge an interval of the difference at a margin in percentage points.

    A limit that lies on the margin does not show anything.
    """
    if interval.low * 100 > -margin_points:
        return "non-inferior"
    return "inferior" if interval.high * 100 < -margin_points else "not shown"


def smallest_difference(n: int) -> float | None:
    """The smallest difference that McNemar's exact test could show with n pairs, all discordant pairs
    on one side; None where n is too small for any."""
    for discordant in range(1, n + 1):
        if mcnemar_exact(PairedCounts(n - discordant, discordant, 0, 0)) < 1 - LEVEL:
            return discordant / n
    return None


def smallest_margin(n: int, base_successes: int) -> float:
    """The margin, as a fraction, above which n pairs that all agreed would show non-inferiority."""
    return -newcombe(PairedCounts(base_successes, 0, 0, n - base_successes)).low


def episodes_needed(margin_points: float) -> int:
    """The least number of pairs that could show a margin: all of them succeed with both policies.

    The limit is then z^2 / (n + z^2).
    """
    fraction = margin_points / 100
    return math.floor(Z**2 * (1 - fraction) / fraction) + 1


def median_ratio(base: Mapping[Any, Sequence[float]], new: Mapping[Any, Sequence[float]]) -> Ratio | None:
    """The ratio of the medians of two runs' latencies; None where there are none.

    Args:
        base, new: of each episode, by a key that can be sorted, its latencies; an episode without any in one
            of the two is left out of both.

    The interval is the expanded percentile one of `by_cluster`, of the logarithm, over episodes drawn again:
    inferences of one episode are not independent. Both runs are given the same draws.
    """
    shared = sorted(key for key in base.keys() & new.keys() if base[key] and new[key])
    if not shared:
        return None
    new_ms, new_owner = _flat([new[key] for key in shared])
    base_ms, base_owner = _flat([base[key] for key in shared])
    new_p50, base_p50 = float(np.median(new_ms)), float(np.median(base_ms))
    interval = None
    if len(shared) > 1:
        weights = _resamples(len(shared), RESAMPLES_OF_LATENCIES)
        logs = np.log(_medians(base_ms, base_owner, weights)) - np.log(_medians(new_ms, new_owner, weights))
        of_log = _percentiles(logs, len(shared), math.log(base_p50) - math.log(new_p50))
        interval = Interval(math.exp(of_log.low), math.exp(of_log.high))
    return Ratio(
        base_p50, new_p50, base_p50 / new_p50, interval, len(base_ms), len(new_ms), episodes=len(shared)
    )


def _square_and_add(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a + b * b - 2 * phi * a * b, 0.0))


def _resamples(clusters: int, number: int) -> NDArray[np.int64]:
    """How often each cluster is drawn, (number, clusters)."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=number)


def _percentiles(samples: NDArray[np.float64], clusters: int, estimate: float) -> Interval:
    """The expanded percentile interval, widened to hold the estimate where it did not."""
    from scipy.stats import t

    reach = math.sqrt(clusters / (clusters - 1)) * float(t.ppf((1 + LEVEL) / 2, clusters - 1))
    tail = NormalDist().cdf(-reach)
    low, high = (float(limit) for limit in np.quantile(samples, [tail, 1 - tail]))
    return Interval(min(low, estimate), max(high, estimate))


def _flat(episodes: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All values, sorted, and of each the number of its episode."""
    values = np.concatenate([np.asarray(episode, dtype=np.float64) for episode in episodes])
    owner = np.repeat(np.arange(len(episodes)), [len(episode) for episode in episodes])
    order = np.argsort(values, kind="stable")
    return values[order], owner[order]


def _medians(
    values: NDArray[np.float64], owner: NDArray[np.int64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The median of every resample; `values` are sorted."""
    medians = []
    for start in range(0, len(weights), ROWS):
        counted = np.cumsum(weights[start : start + ROWS, owner], axis=1)
        total = counted[:, -1:]
        middle = [(counted <= position).sum(axis=1) for position in ((total - 1) // 2, total // 2)]
        medians.append((values[middle[0]] + values[middle[1]]) / 2)
    return np.concatenate(medians)
