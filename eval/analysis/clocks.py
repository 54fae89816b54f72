"""Runs under a clock side by side, as a pure function: success against delay and against latency."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from eval.analysis.overview import Overview
from eval.analysis.summary import Summary
from eval.records.reader import Run

CONTROL_PERIOD_MS = 50.0  # of LIBERO's controller, at speed 1
# what `eval.episodes.clock.CannotServe` says, and a sweep records of a run that had no result
UNSERVED = re.compile(
    r"clock=(?P<mode>[a-z]+) needs .* d = (?P<delay>\d+) \((?P<ms>[\d.e+]+) ms at (?P<period>[\d.e+-]+) ms"
)


@dataclass(frozen=True)
class Cell:
    """A run under a clock, or one that cannot be served.

    Attributes:
        series: the clock's mode, and how it guides.
        number: of its row in the overview; None where the run cannot be served.
        backend: the policy whose latency a bench gave; None for a latency in numbers.
        speed: of the robot; delay: d; latency_ms: what an inference was charged, on average.
        rate, low, high: success with its Wilson interval; None where the run cannot be served.
    """

    series: str
    number: int | None
    backend: str | None
    speed: float
    delay: float
    latency_ms: float
    rate: float | None
    low: float | None
    high: float | None


def cells(overview: Overview) -> tuple[Cell, ...]:
    """Take the cells of an overview; none where no run is under a clock."""
    if all(entry.summary.clock is None for entry in overview.entries):
        return ()
    runs = ((entry.run, entry.summary) for entry in overview.entries)
    return collect(runs, (reason for _, reason in overview.missing))


def collect(runs: Iterable[tuple[Run, Summary]], reasons: Iterable[str]) -> tuple[Cell, ...]:
    """Take a cell of each run, which are numbered from 1, and of each reason why a clock cannot be served.

    Runs whose time stood still are the cells of delay 0. Left out are runs without a finished episode, those
    with random weights, and those whose records do not say what was charged.
    """
    each = (_cell(number, run, summary) for number, (run, summary) in enumerate(runs, 1))
    served = [cell for cell in each if cell is not None]
    by_mode: dict[str, set[str]] = {}
    for one in served:
        by_mode.setdefault(one.series.partition(",")[0], set()).add(one.series)
    unserved = [cell for reason in reasons if (cell := _unserved(reason)) is not None]
    return (*served, *(_in_series(one, by_mode.get(one.series, set())) for one in unserved))


def _cell(number: int, run: Run, summary: Summary) -> Cell | None:
    total, clock = summary.total, summary.clock
    if total.rate is None or summary.random_weights:
        return None
    if clock is None:
        return Cell("free", number, None, 1.0, 0.0, 0.0, total.rate, total.low, total.high)
    if clock.delay is None or clock.latency_mean_ms is None:
        return None
    config = (run.run.get("config") or {}).get("clock") or {}
    backend = (config.get("latency_policy") or summary.policy) if config.get("latency_from") else None
    return Cell(
        series=clock.mode if clock.guidance is None else f"{clock.mode}, {clock.guidance}",
        number=number,
        backend=backend,
        speed=clock.speed,
        delay=clock.delay,
        latency_ms=clock.latency_mean_ms,
        rate=total.rate,
        low=total.low,
        high=total.high,
    )


def _in_series(cell: Cell, named: set[str]) -> Cell:
    """Name the series of a cell that was not served as those that were, where its mode has one alone."""
    return replace(cell, series=next(iter(named))) if len(named) == 1 else cell


def _unserved(reason: str) -> Cell | None:
    match = UNSERVED.search(reason)
    if match is None:
        return None
    latency_ms, period_ms = float(match["ms"]), float(match["period"])
    speed = CONTROL_PERIOD_MS / period_ms
    return Cell(match["mode"], None, None, speed, float(match["delay"]), latency_ms, None, None, None)
