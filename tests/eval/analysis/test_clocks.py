"""Runs under a clock become cells of a plot, and what cannot be served one too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.clocks import CONTROL_PERIOD_MS, Cell, cells
from eval.analysis.overview import Source, overview
from eval.episodes.clock import PERIOD_MS, CannotServe, Clock
from eval.records.reader import read_run
from eval.records.schema import ClockRecord
from tests.eval.written_runs import write_run

CLOCK = ClockRecord("async", 1.0, 3.0, 4, 4.0, 4, 6.0, 9, 0.25, 1.0, 184.5)


def source(folder: Path, clock: ClockRecord | None, failures: range = range(0), **config: Any) -> Source:
    said = {"config": {"clock": config}, "overrides": [folder.name]}
    write_run(folder, count=20, failures=failures, run=said, clock=clock)
    return Source(folder, read_run(folder))


def unserved(mode: str, latency_ms: float, speed: float, s: int = 5, horizon: int = 10) -> Source:
    with pytest.raises(CannotServe) as error:
        Clock(mode, speed=speed).check(latency_ms, s, horizon)  # type: ignore[arg-type]
    return Source(Path(mode), None, f"exit status 1: {error.value}")


def test_runs_are_cells_with_their_delay_and_latency(tmp_path: Path) -> None:
    guided, older = (
        replace(CLOCK, mode="rtc", speed=4.0, delay_mean=1.5),
        replace(CLOCK, latency_mean_ms=None),
    )
    sources = [
        source(tmp_path / "free", None, name="free"),
        source(
            tmp_path / "fixed", replace(CLOCK, latency_mean_ms=None), range(2), name="async", latency_ms=200
        ),
        source(tmp_path / "drawn", CLOCK, latency_from="b", latency_policy="native_fp8", name="async"),
        source(tmp_path / "own", guided, latency_from="b", beta=5.0, jacobian="identity", name="rtc"),
        source(tmp_path / "older", older, name="async", latency_ms="measured"),
    ]
    free, fixed, drawn, own = cells(overview(sources, 2.0))
    assert (free.series, free.delay, free.latency_ms, free.rate) == ("free", 0.0, 0.0, 1.0)
    assert (fixed.series, fixed.backend, fixed.delay, fixed.latency_ms) == ("async", None, 4.0, 200.0)
    assert fixed.rate == 0.9
    assert fixed.low is not None
    assert fixed.low < 0.9
    assert (drawn.backend, drawn.latency_ms, drawn.number) == ("native_fp8", 184.5, 3)
    assert (own.series, own.backend, own.speed) == ("rtc, beta 5, identity", "baseline", 4.0)


def test_no_clock_no_cells(tmp_path: Path) -> None:
    assert cells(overview([source(tmp_path / "free", None)], 2.0)) == ()


@pytest.mark.parametrize(("s", "horizon"), [(5, 10), (9, 10)], ids=["d > s", "s > H - d"])
@pytest.mark.parametrize("mode", ["async", "rtc"])
@pytest.mark.parametrize("speed", [2.0, 3.0])
def test_what_cannot_be_served_is_a_cell_without_success(
    mode: str, speed: float, s: int, horizon: int, tmp_path: Path
) -> None:
    sources = [source(tmp_path / "run", CLOCK, latency_ms=50), unserved(mode, 184.0, speed, s, horizon)]
    _, cell = cells(overview(sources, 2.0))
    delay = Clock("wait", speed=speed).delay(184.0)
    assert cell == Cell(mode, None, None, pytest.approx(speed, rel=1e-3), delay, 184.0, None, None, None)


def test_what_cannot_be_served_stands_with_the_guided_series_of_its_mode(tmp_path: Path) -> None:
    guided = replace(CLOCK, mode="rtc")
    one = source(tmp_path / "1", guided, latency_ms=50, beta=5.0, jacobian="identity", name="rtc")
    other = source(tmp_path / "2", guided, latency_ms=50, beta=1.0, jacobian="identity", name="rtc")
    missing = unserved("rtc", 600.0, 1.0)
    assert cells(overview([one, missing], 2.0))[-1].series == "rtc, beta 5, identity"
    assert cells(overview([one, other, missing], 2.0))[-1].series == "rtc"


def test_the_period_is_that_of_the_simulator() -> None:
    assert CONTROL_PERIOD_MS == PERIOD_MS
