"""The report: what a reader finds in the page, and that a browser shows it without network or scripts."""

import html
import json
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.analysis.summary import RANDOM_WEIGHTS
from eval.records.reader import read_run
from eval.records.sweep import SWEEP_FILE
from eval.records.video import video_name, write_video
from eval.report.cli import main
from eval.report.plots import Axis, Box, Point, boxes, latency_axis, pareto, ticks
from eval.report.sources import find_sources
from tests.eval.browser import NAMES, Browser, find_browser
from tests.eval.written_runs import write_run

SECTIONS = (
    *("headline", "runs", "pareto", "latency", "tasks", "comparisons"),
    *("episodes", "warnings", "engagement", "environment", "reproduce"),
)
VOID = {"meta", "link", "br", "img"}


class Tags(HTMLParser):
    """Collects ids, and addresses that a browser would fetch; complains of tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.names: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(autouse=True)
def _no_power_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A base, a faster run that lost an episode of which there is a video, and one of random weights."""
    lost = write_run(tmp_path / "b", policy="native_fp8", infer_ms=5.0, failures=[3], run={"gl_backend": "x"})
    [failure] = [episode for episode in read_run(lost).episodes if not episode.success]
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (10, 120, 240)]
    write_video(frames, lost / "videos" / video_name(failure), 10)
    label = f"{RANDOM_WEIGHTS} (small)"
    random = write_run(tmp_path / "c", policy="untrained", run={"weights_label": label}, weights_label=label)
    return [write_run(tmp_path / "a"), lost, random]


def job(folder: str, error: str | None = None) -> dict[str, Any]:
    """A job as `sweep.json` has it."""
    return {"folder": folder, "label": folder, "overrides": [], "error": error}


def report(runs: list[Path], *options: str) -> str:
    out = runs[0].parent / "report.html"
    assert main([*map(str, runs), "--out", str(out), *options]) == 0
    return out.read_text()


def test_the_page_has_its_sections_and_nothing_to_fetch(runs: list[Path]) -> None:
    tags = Tags(report(runs))
    assert set(SECTIONS) <= set(tags.ids)
    assert len(tags.ids) == len(set(tags.ids))
    assert all(address.startswith("data:") for address in tags.addresses)
    assert not tags.names & {"script", "iframe", "object", "embed"}


def test_the_numbers_of_the_page_are_those_of_the_records(runs: list[Path]) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", report(runs)))
    assert "199 / 200 97.2 to 99.9 % 200 5.15 5.30 194.2 4.00x" in text
    assert "lost 1, won 0, exact McNemar P = 1." in text
    assert "native_fp8, 10 steps: lost, the first run succeeded (1)" in text
    assert "git checkout 0123456789abcdef .venv/bin/python -m eval policy=native_fp8 denoise.steps=10" in text
    assert "NVIDIA H200, driver 580.159, CUDA 13.0" in text
    assert "tensorrt" not in text


def test_random_weights_are_shouted(runs: list[Path]) -> None:
    assert '<p class="shout" role="alert">RANDOM WEIGHTS (small): success means nothing here</p>' in report(
        runs
    )
    assert 'class="shout"' not in report(runs[:2])


def test_a_discordant_episode_has_the_frames_of_its_video(runs: list[Path]) -> None:
    text = report(runs[:2])
    assert text.count('<img src="data:image/jpeg;base64,') == 2
    assert "no video recorded; run again with video=all" in text


def test_episodes_beyond_the_pictured_are_named_by_task(tmp_path: Path) -> None:
    text = report([write_run(tmp_path / "a"), write_run(tmp_path / "b", failures=range(12))])
    assert text.count('<article class="card">') == 6
    assert "Without pictures: libero_spatial task 4 seed 7: 0; libero_spatial task 5 seed 7: 0" in text


def test_a_broken_video_is_said(runs: list[Path]) -> None:
    [video] = (runs[1] / "videos").iterdir()
    video.write_bytes(b"not a video")
    assert "the video cannot be read" in report(runs[:2])


def test_one_run_is_a_report_too_and_shows_its_failures(runs: list[Path]) -> None:
    text = report(runs[1:2])
    assert "There is one run, and nothing to compare it with." in text
    assert "1 native_fp8, 10 steps: did not succeed (1)" in text


def test_texts_of_records_are_never_markup(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    run = write_run(tmp_path / "a", policy=bad, count=4, errors=[1], run={"overrides": [f"x={bad}"]})
    other = write_run(tmp_path / "b", count=4, run={"notes": [bad]})
    text = report([run, other], "--title", bad)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_tint_of_a_tasks_success_is_its_rate(tmp_path: Path) -> None:
    text = report([write_run(tmp_path / "a", count=40, failures=[1, 11, 21, 2])])
    tint = r"background: color-mix\(in oklab, var\(--good\) (\d+)%, var\(--none\)\)"
    shares = re.findall(rf'style="{tint}">(\d) / 4', text)
    assert shares == [("25", "1"), ("75", "3")]


def test_latencies_under_load_are_labelled(tmp_path: Path) -> None:
    text = report([write_run(tmp_path / "a", under_load=True, run={"config": {"shard": "2/3"}})])
    assert "other episodes ran beside every inference" in text
    assert "UNDER LOAD baseline" in text
    assert '<span class="flag">shard 2/3</span>' in text


def test_nothing_to_report_on_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'nowhere'} does not exist"
    assert main([str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == (f"error: {tmp_path} holds no run, nor does any folder below it")


def test_runs_below_dates_and_sweeps_are_found_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "2026-11-22" / "10-00_a", count=1)
    write_run(tmp_path / "2026-11-23" / "09-00_b", count=1, policy="other")
    jobs = [job("0_a"), job("1_b", "no GPU here")]
    write_run(tmp_path / "sweeps" / "s" / "0_a", count=1, policy="swept")
    (tmp_path / "sweeps" / "s" / SWEEP_FILE).write_text(json.dumps({"jobs": jobs}))
    text = report([tmp_path])
    assert all(label in text for label in ("baseline, 10 steps", "other, 10 steps", "swept, 10 steps"))
    assert "1_b: no GPU here" in text
    printed = " ".join(capsys.readouterr().err.split())
    assert printed == f"{tmp_path} has 3 folders with runs: 2026-11-22/10-00_a, 2026-11-23/09-00_b, sweeps/s"


def test_a_folder_of_runs_is_read_in_the_order_of_its_numbers_and_each_run_once(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / f"{number}_baseline_steps10", count=1)
    names = [source.folder.name for source in find_sources([tmp_path, tmp_path / "9_baseline_steps10"])]
    assert names == ["1_baseline_steps10", "9_baseline_steps10", "10_baseline_steps10"]


def test_runs_without_numbers_are_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    for name, day in (("a", 27), ("b", 28), ("c", 26)):
        folder = write_run(tmp_path / name, count=1)
        run = json.loads((folder / "run.json").read_text())
        run["provenance"]["time"] = f"2026-11-{day}T10:00:00+00:00"
        (folder / "run.json").write_text(json.dumps(run))
    write_run(tmp_path / "0", count=1)  # says no time
    assert [source.folder.name for source in find_sources([tmp_path])] == ["c", "a", "b", "0"]


def test_the_base_of_a_page_is_named_and_is_in_the_command_that_makes_it_again(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, count=6, policy=name, infer_ms=ms)
        for name, ms in (("a", 5.0), ("b", 20.0))
    ]
    text = report([*folders, f"--base={folders[1]}"])
    rows = re.findall(r'<th scope="row" role="rowheader">(?:<[^>]*>|[^<])*?(a|b), 10 steps', text)
    assert rows[:2] == ["b", "a"]
    assert f"--base={folders[1]}" in text


def test_a_damaged_run_is_named_and_stops_the_report_only_if_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "x" / "a", count=1)
    damaged = write_run(tmp_path / "x" / "b", count=1)
    (damaged / "episodes.jsonl").write_text("no json\n")
    assert f"{damaged}: episodes.jsonl:1: corrupt" in report([tmp_path])
    assert f"{damaged}: no numbers: episodes.jsonl:1: corrupt" in capsys.readouterr().err
    assert main([str(damaged)]) == 1
    assert "episodes.jsonl:1: corrupt" in capsys.readouterr().err


def test_a_damaged_job_of_a_sweep_is_named_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("0_a", "1_b", "2_c")
    for name in names:
        write_run(tmp_path / name, count=1)
    (tmp_path / "1_b" / "episodes.jsonl").write_text("no json\n")
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"jobs": [job(name) for name in names]}))
    sources = find_sources([tmp_path])
    assert [source.run is not None for source in sources] == [True, False, True]
    assert sources[1].reason is not None
    assert "episodes.jsonl:1: corrupt" in sources[1].reason
    (tmp_path / SWEEP_FILE).write_text("{}")
    assert main([str(tmp_path)]) == 1
    assert f"{SWEEP_FILE} has no list `jobs`" in capsys.readouterr().err


def test_one_of_a_thing_is_singular(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, count=2, errors=[1]) for name in "ab"]
    text = report(runs, "--margin", "1")
    assert "1 error</span>" in text
    assert "over 1 pair;" in text
    assert "at 1 point" in text
    assert not re.search(r"\b1 (errors|pairs|points|steps)\b", text)


def test_the_report_is_the_same_each_time(runs: list[Path]) -> None:
    assert report(runs) == report(runs)


def test_the_command_on_the_page_makes_the_page_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a b", count=2)

    def command(page: str) -> list[str]:
        [line] = re.findall(r"<h3>This report</h3>\s*<pre>(.*)</pre>", page)
        return shlex.split(html.unescape(line))

    assert command(report([run])) == ["python", "-m", "eval.report", str(run)]
    page = report([run], "--margin", "0.5", "--title=--mine & 'yours'")
    assert command(page)[4:] == ["--title=--mine & 'yours'", "--margin=0.5"]
    assert report([run], *command(page)[4:]) == page


@pytest.mark.parametrize("values", [(5.0, 5.0), (0.8, 1.3), (1.0, 149.0), (0.002, 900.0), (99.0, 101.0)])
def test_ticks_lie_on_the_axis(values: tuple[float, float]) -> None:
    axis = latency_axis(values, 0.0, 100.0)
    on_axis = ticks(axis)
    assert 2 <= len(on_axis) <= 8
    assert all(-1e-6 <= axis.at(value) <= 100 + 1e-6 for value in on_axis)
    assert all(0 <= axis.at(value) <= 100 for value in values)


def test_a_point_lies_where_its_numbers_say() -> None:
    axis = Axis(0.5, 1.0, 258, 40, log=False)
    assert axis.at(0.75) == pytest.approx(149)
    points = [
        Point(1, "slow", 0, 100.0, 0.9, 0.8, 0.95, True),
        Point(2, "fast", 1, 5.0, 0.8, 0.7, 0.9, True),
    ]
    svg = str(pareto(points, "a GPU"))
    assert "Success against latency on a GPU. slow 90.0% at 100.00 ms; fast 80.0% at 5.00 ms" in svg
    [line] = re.findall(r'<polyline points="([^"]*)" class="front"', svg)
    (x1, y1), (x2, y2) = ([float(v) for v in pair.split(",")] for pair in line.split())
    assert x1 < x2
    assert y1 > y2


def test_boxes_name_each_run_and_its_numbers() -> None:
    svg = str(boxes("denoise", [Box(3, "fast", 2, 1.0, 1.5, 2.0, 2.5, 9.0)]))
    assert "<title>fast: median 2.00 (p95 9.00) ms</title>" in svg
    assert "Latency of denoise. fast median 2.00 ms, p95 9.00 ms" in svg


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_browser()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (apt-get install chromium)")
    with Browser(executable) as browser:
        yield browser


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
def test_a_browser_shows_the_page(
    runs: list[Path], browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    report(runs)
    browser.open(tmp_path / "report.html", width, dark=dark)
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    for section in SECTIONS:
        assert browser.evaluate(f"document.getElementById('{section}').getBoundingClientRect().height") > 20
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert browser.evaluate("document.images.length") == 2
    texts = "[...document.querySelectorAll('svg.plot text')]"
    assert browser.evaluate(f"Math.min(...{texts}.map(text => text.getBoundingClientRect().height))") >= 10
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_a_browser_prints_the_page_on_white(runs: list[Path], browser: Browser, tmp_path: Path) -> None:
    report(runs)
    browser.open(tmp_path / "report.html", 1280, dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert browser.pdf().startswith(b"%PDF")
