"""A paired test that may be read after every pair: whether NEW loses less than a margin, or more.

Let d be NEW - BASE of a pair (1, 0 or -1) and m the margin. If NEW's mean loss is m or more, the product of
1 + lambda (d + m) is a supermartingale that begins at 1, for each lambda of 0 to 1, and so is the mean over
several; it ever reaches 20 with a probability of 5 % at most (Ville's inequality). The mirrored product is
for a loss of m or less. (Waudby-Smith and Ramdas 2024, JRSS B 86, 1-27, "betting" on bounded means.)

Non-obvious behaviors:
    The mirrored product needs lambda <= 1 / (1 + m), or a pair that NEW won would make it negative: above a
    margin of 5.26 points the largest lambdas are cut to that.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eval.analysis.comparable import NotComparable, pair_key
from eval.records.episodes import Episodes
from eval.records.order import balanced_order
from eval.records.reader import Run
from eval.records.schema import EpisodeRecord
from eval.sim.plus import start_of
from policies.base import EpisodeKey
from policies.text import shorten

Decision = Literal["non-inferior", "inferior", "undecided"]

LAMBDAS = (0.25, 0.5, 0.75, 0.95)
ENOUGH = 20.0  # 1 / 5 %


@dataclass
class PairedTest:
    """The evidence so far; `decision` is that of the pair that first showed it, and stays.

    Attributes:
        pairs: that were read, up to the decision.
        non_inferior, inferior: E of each direction, at the last pair that was read.
    """

    margin_points: float
    pairs: int = 0
    non_inferior: float = 1.0
    inferior: float = 1.0
    decision: Decision = "undecided"

    def __post_init__(self) -> None:
        self._margin = self.margin_points / 100
        self._for = [1.0] * len(LAMBDAS)
        self._against = [1.0] * len(LAMBDAS)

    def add(self, base: bool, new: bool | None) -> None:
        """Read a pair's successes; NEW's is None where it raised, which counts against each decision."""
        if self.decision != "undecided":
            return
        worst, best = int(bool(new)) - int(base), int(new is not False) - int(base)
        margin = self._margin
        for i, rate in enumerate(LAMBDAS):
            self._for[i] *= 1 + rate * (worst + margin)
            self._against[i] *= 1 + min(rate, 1 / (1 + margin)) * (-best - margin)
        self.pairs += 1
        self.non_inferior = sum(self._for) / len(LAMBDAS)
        self.inferior = sum(self._against) / len(LAMBDAS)
        if self.non_inferior >= ENOUGH:
            self.decision = "non-inferior"
        elif self.inferior >= ENOUGH:
            self.decision = "inferior"


@dataclass(frozen=True)
class Sequential:
    """What the test says of two runs.

    Attributes:
        decision: at the margin; pairs: how many it took, or how many were read without one.
        planned: pairs in the order; missing: the first that a run lacks, where reading ended without a
            decision.
        stopped: whether NEW ended with its decision, so that a verdict for a fixed number of pairs is void.
    """

    margin: float
    decision: Decision
    pairs: int
    planned: int
    non_inferior: float
    inferior: float
    missing: str | None
    stopped: bool


class EarlyStop:
    """Reads a run's episodes in their order as they end, against the run BASE that has them all.

    Args:
        base: BASE's successes; ValueError where one of `keys` is missing.
    """

    def __init__(
        self, keys: Iterable[EpisodeKey], base: Mapping[EpisodeKey, bool], margin_points: float
    ) -> None:
        self.order = reading_order(keys)
        if missing := [key for key in self.order if key not in base]:
            raise ValueError(f"no outcome of {shorten(missing)}")
        self.test = PairedTest(margin_points)
        self._base = base
        self.base_sha256 = hashlib.sha256(
            "\n".join(f"{key} {base[key]}" for key in self.order).encode()
        ).hexdigest()
        self._ended: dict[EpisodeKey, bool | None] = {}
        self._next = 0

    @property
    def decided(self) -> bool:
        return self.test.decision != "undecided"

    def add(self, key: EpisodeKey, success: bool | None) -> None:
        """Note how an episode ended; None where it raised and is not tried again in this process."""
        self._ended.setdefault(key, success)
        while self._next < len(self.order) and self.order[self._next] in self._ended and not self.decided:
            read = self.order[self._next]
            self.test.add(self._base[read], self._ended[read])
            self._next += 1

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        test = self.test
        return {
            "decision": test.decision,
            "margin": test.margin_points,
            "pairs": test.pairs,
            "planned": len(self.order),
            "base_sha256": self.base_sha256,
            "e_non_inferior": test.non_inferior,
            "e_inferior": test.inferior,
        }


def reading_order(keys: Iterable[EpisodeKey]) -> list[EpisodeKey]:
    """The order in which the test reads: balanced over tasks, of LIBERO-Plus's over base tasks."""
    return balanced_order(keys, lambda key: start_of(key.suite, key.task_id))


def read_runs(base: Run, new: Run, margin_points: float, *, asked: bool) -> Sequential | None:
    """Read two runs; None where nobody asked and NEW was not to stop. Raises NotComparable."""
    stopped = new.run.get("stop") is not None
    if not (asked or stopped):
        return None
    try:
        planned = _planned(base) & _planned(new)
        before, after = ({pair_key(episode.key): episode for episode in run.episodes} for run in (base, new))
        return read_pairs(planned, before, after, margin_points, stopped=stopped)
    except ValueError as error:
        raise NotComparable(str(error)) from error


def _planned(run: Run) -> set[EpisodeKey]:
    """The episodes that a run set out to do, or has, where run.json does not say."""
    plans = [Episodes.from_dict(part) for part in run.run.get("episodes") or ()]
    planned = {pair_key(key) for plan in plans for key in plan.keys()}  # noqa: SIM118  no mapping
    return planned or {pair_key(episode.key) for episode in run.episodes}


def read_pairs(
    planned: Iterable[EpisodeKey],
    base: Mapping[EpisodeKey, EpisodeRecord],
    new: Mapping[EpisodeKey, EpisodeRecord],
    margin_points: float,
    *,
    stopped: bool,
) -> Sequential:
    """Read two runs in the order of what was planned, up to a decision or the first pair that is missing.

    A pair is missing where BASE did not finish it, or NEW has not got it.
    """
    order, test, missing = reading_order(planned), PairedTest(margin_points), None
    for key in order:
        if test.decision != "undecided":
            break
        before, after = base.get(key), new.get(key)
        if before is None or before.success is None or after is None:
            missing = str(key)
            break
        test.add(before.success, after.success)
    return Sequential(
        margin_points,
        test.decision,
        test.pairs,
        len(order),
        test.non_inferior,
        test.inferior,
        missing,
        stopped,
    )
