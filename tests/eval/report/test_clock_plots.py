"""Plots of runs under a clock: every cell is drawn where it belongs, and the page has them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.analysis.clocks import Cell
from eval.records.schema import ClockRecord
from eval.records.sweep import SWEEP_FILE
from eval.report.cli import main
from eval.report.clock_plots import by_delay, by_latency, legend
from tests.eval.report.test_report import Tags, job
from tests.eval.written_runs import write_run

FREE = Cell("free", 1, None, 1.0, 0.0, 0.0, 1.0, 0.98, 1.0)
ASYNC = Cell("async", 2, None, 1.0, 4.0, 200.0, 0.945, 0.9, 0.97)
BACKEND = Cell("async", 3, "baseline", 1.0, 4.0, 184.0, 0.95, 0.91, 0.975)
FAST = replace(BACKEND, backend="native_fp8", latency_ms=14.0, delay=1.0, rate=1.0, low=0.98, high=1.0)
UNSERVED = Cell("async", None, None, 2.0, 8.0, 184.0, None, None, None)


def test_success_against_delay_has_a_line_from_the_run_whose_time_stood_still() -> None:
    plot = by_delay([FREE, ASYNC, replace(ASYNC, delay=1.0, rate=1.0)])
    [points] = re.findall(r'<polyline points="([^"]*)"', plot)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert len(places) == 3
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[0][1] == places[1][1] < places[2][1]  # 100 % twice, then less, which is lower down
    assert "async, d = 4, 200 ms: 94.5% (90.0 to 97.0 %)" in plot


def test_each_backend_stands_at_its_own_latency() -> None:
    plot = by_latency([FREE, BACKEND, FAST], 1.0)
    assert plot is not None
    assert "latency of an inference, ms, logarithmic" in plot
    for name in ("baseline", "native_fp8"):
        assert f">{name}</text>" in plot
    assert plot.count('class="front"') == 2
    assert "<polyline" not in plot  # backends are not joined
    assert by_latency([FREE], 1.0) is None
    assert by_latency([BACKEND], 4.0) is None


def test_what_cannot_be_served_is_a_cross_with_words() -> None:
    for plot in (by_latency([replace(BACKEND, speed=2.0), UNSERVED], 2.0), by_delay([FREE, ASYNC, UNSERVED])):
        assert plot is not None
        assert "async, d = 8, 184 ms: cannot be served" in plot
        assert plot.count('class="median"') == 2


def test_the_legend_names_each_series_once() -> None:
    assert [name for _, name in legend([FREE, ASYNC, BACKEND])] == ["free", "async"]


@pytest.fixture(autouse=True)
def _no_power_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def test_a_sweep_over_clocks_has_its_plots_in_the_page(tmp_path: Path) -> None:
    clock = ClockRecord("async", 1.0, 3.0, 4, 4.0, 4, 6.0, 9, 0.25, 1.0)
    config = {"config": {"clock": {"name": "async", "latency_ms": 200}}}
    write_run(tmp_path / "0", count=20)
    write_run(tmp_path / "1", count=20, run=config, clock=clock)
    reason = (
        "clock=async needs a delay of at most the replan steps, got d = 8 (184 ms at 25 ms a step) and s = 5"
    )
    jobs = [job("0"), job("1"), job("2", reason)]
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"jobs": jobs}))
    assert main([str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "clock" in Tags(text).ids
    assert "At 20 Hz, against latency" in text
    assert "At 40 Hz, against latency" in text
    assert "async, d = 8, 184 ms: cannot be served" in text
    assert main([str(tmp_path / "0"), "--out", str(tmp_path / "free.html")]) == 0
    assert "clock" not in Tags((tmp_path / "free.html").read_text()).ids
