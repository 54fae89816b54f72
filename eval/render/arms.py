"""What perturbations cost, as cells of a table: a row for each perturbed run beside its control."""

from collections.abc import Iterator

from eval.analysis.overview import Overview
from eval.analysis.statistics import Interval, PairedCounts
from eval.render.tables import NONE
from eval.sim.suites import LEVELS

COLUMNS = (
    *("#", "policy", "perturbed suite", "pairs", "control", "perturbed", "points", "95 % by task", "lost"),
    *(f"level {level}" for level in LEVELS),
)
TEXTS = 3
CAPTION = "What perturbations cost, against the control arm"
LEGEND = (
    "Control and perturbed have the same tasks, initial states and noise keys; points are perturbed - "
    "control. The interval draws tasks again, of LIBERO-Plus's the base tasks. Lost: the control alone "
    "succeeded. Levels are LIBERO-Plus's labels: control -> perturbed."
)


def rows(overview: Overview) -> Iterator[tuple[str, ...]]:
    """The cells under `COLUMNS`."""
    for arms in overview.arms:
        numbers = f"{arms.control}, {arms.perturbed}"
        result = arms.comparison
        if result is None:
            why = f"not comparable: {arms.not_comparable}"
            yield numbers, arms.label, f"{arms.suite} ({why})", *[NONE] * (len(COLUMNS) - TEXTS)
            continue
        counts = result.counts
        yield (
            *(numbers, arms.label, arms.suite, str(counts.n)),
            *_rates(counts),
            f"{result.difference * 100:+.1f}",
            _span(result.newcombe.hull(result.by_task)),
            str(counts.lost),
            *(_level(result.levels.get(level)) for level in LEVELS),
        )


def _rates(counts: PairedCounts) -> tuple[str, str]:
    control, perturbed = counts.both + counts.lost, counts.both + counts.won
    return f"{control / counts.n:.1%}", f"{perturbed / counts.n:.1%}"


def _level(counts: PairedCounts | None) -> str:
    return NONE if counts is None else " -> ".join(_rates(counts))


def _span(interval: Interval) -> str:
    return f"{interval.low * 100:+.1f} to {interval.high * 100:+.1f}"
