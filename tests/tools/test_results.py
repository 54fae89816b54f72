"""The results are what the committed data give; data that are not as they must be are named."""

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.summary import RANDOM_WEIGHTS
from eval.compare import main as compare
from eval.records.trees import SOURCES, code_state, run_tool
from eval.report.cli import main as report
from policies.files import ROOT
from tests.eval.written_runs import write_run
from tools.results.cli import BEGIN, END, main
from tools.results.headline import NAME
from tools.results.runs import DATA, REPORTS

RUN = {"config": {"suite": {"max_steps": 220}, "protocol": {"name": "full"}}}
GOLDEN = Path(__file__).with_name("results.golden.md")
READMES = (Path("README.md"), REPORTS / "README.md")
RUNS, EARLY = DATA / NAME / "runs", DATA / "early" / "runs"
BENCH, REPORTED = DATA / NAME / "bench.json", DATA / "early" / "reported.json"
PLOT, PAGE = REPORTS / f"{NAME}_latency.svg", REPORTS / f"{NAME}.html"
FAST, COMPARISON = RUNS / "fast_10", DATA / NAME / "compare_fast_10.md"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two reports with runs, one of them with a bench, and a reported figure; nothing is written yet."""

    def add(folder: Path, policy: str, steps: int, failures: tuple[int, ...] = (), **more: Any) -> None:
        run = RUN | {"runner": more.pop("runner", None)}
        known = {"policy": policy, "steps": steps, "count": 50, "checkpoint": "reference"}
        write_run(tmp_path / folder, **known, failures=failures, run=run, **more)

    add(RUNS / "baseline_10", "baseline", 10, runner={"max_batch": 8, "batch_sizes": [1, 2, 4]})
    add(FAST, "fast", 10, failures=(4, 7), errors=(9,), infer_ms=5.0)
    add(EARLY / "slow_5", "slow", 5, under_load=True)
    add(EARLY / "slow_3", "slow", 3, under_load=True)
    (tmp_path / EARLY).with_name("base").write_text("slow_5\n")
    for path in READMES:
        (tmp_path / path).write_text(f"# Title\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    for name in (NAME, "early"):
        (tmp_path / REPORTS / f"{name}.md").write_text("In one run\n7 of 9 succeeded.\n")
    row = {"denoise_steps": None, "weights": "none", "protocol": "libero_goal, quick", "machine": "a CPU"}
    figure = {"policy": "oracle", "successes": 7, "finished": 9, "report": f"{REPORTS}/early.md"}
    (tmp_path / REPORTED).write_text(json.dumps([row | figure | {"quote": "run 7 of 9"}]))
    shutil.copy(ROOT / DATA / "2026-11-23_realtime" / "bench.json", tmp_path / BENCH)
    return tmp_path


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_what_is_committed_is_what_the_data_give() -> None:
    assert main(["--check"]) == 0, "run make results"


def test_the_tables_of_a_few_runs(root: Path) -> None:
    assert main([], root) == 0
    assert "\n".join((root / path).read_text() for path in READMES) == GOLDEN.read_text()


def test_the_check_writes_nothing_and_names_what_is_stale(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], root) == 0
    text = (root / "README.md").read_text()
    (root / "README.md").write_text(text.replace("50 / 50", "51 / 51"))
    (root / PLOT).unlink()
    (root / COMPARISON).write_text("")
    capsys.readouterr()
    assert main(["--check"], root) == 1
    stale = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stale == [
        f"error: {path} is not what the data give; run make results"
        for path in ("README.md", PLOT, COMPARISON)
    ]
    assert not (root / PLOT).exists()
    assert main([], root) == 0
    assert (root / "README.md").read_text() == text
    assert main(["--check"], root) == 0


def test_what_no_data_give_fails_and_is_not_deleted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = (REPORTS / "old.html", REPORTS / "old_latency.svg", DATA / NAME / "compare_old_10.md")
    for path in others:
        (root / path).touch()
    assert main([], root) == 1
    error = capsys.readouterr().err
    assert all(
        f"error: {path} is of no data; remove it" in error and (root / path).exists() for path in others
    )


def test_a_page_is_what_the_report_makes_of_runs_with_inferences_the_base_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / FAST, root / RUNS / "a_5")
    change(root / EARLY / "slow_5" / "run.json", lambda run: run.update(inferences_left_out="by a test"))
    (root / EARLY / "slow_5" / "inferences.jsonl").unlink()
    shutil.rmtree(root / EARLY / "slow_3")
    assert main([], root) == 0
    monkeypatch.chdir(root)
    runs = [str(RUNS / name) for name in ("baseline_10", "a_5", "fast_10")]
    assert report([*runs, "--out", "again.html", "--title", NAME]) == 0
    assert Path(PAGE).read_text() == Path("again.html").read_text()
    assert str(root) not in Path(PAGE).read_text()
    assert not (REPORTS / "early.html").exists()


def test_a_run_with_as_many_denoise_steps_as_the_base_is_compared_with_it(root: Path) -> None:
    (root / FAST).rename(root / RUNS / "tenth")
    write_run(root / RUNS / "fast_5", steps=5, count=50, checkpoint="reference", run=RUN)
    assert main([], root) == 0
    [comparison] = (root / DATA).glob("*/compare_*.md")
    assert comparison.name == "compare_tenth.md"
    folders = [str(root / RUNS / name) for name in ("baseline_10", "tenth")]
    compare([*folders, "--markdown", str(root / "again.md")])
    assert comparison.read_text() == (root / "again.md").read_text()


def test_the_plot_is_a_picture_that_needs_nothing_else(root: Path) -> None:
    assert main([], root) == 0
    text = (root / PLOT).read_text()
    picture = ET.fromstring(text)
    width, height = (float(picture.attrib[name]) for name in ("width", "height"))
    for box in picture.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    assert RANDOM_WEIGHTS in text
    assert not any(word in text for word in ("href", "src=", "url(", "<script"))


@pytest.mark.parametrize(
    ("path", "edit", "message"),
    [
        (
            BENCH,
            lambda record: record["settings"][0]["policies"][1]["engagement"]["prefix"].update(misses=1),
            "missed 1",
        ),
        (
            REPORTED,
            lambda figures: figures[0].update(quote="run 8 of 9"),
            "quote 'run 8 of 9' is not in docs/results/",
        ),
        (FAST, lambda run: run.update(planned_episodes=51), "50 of 51 planned episodes are recorded"),
        (
            FAST,
            lambda run: run.update(weights_label=RANDOM_WEIGHTS),
            f"{RANDOM_WEIGHTS}: success means nothing",
        ),
        (
            FAST,
            lambda run: run["config"]["suite"].update(max_steps=9),
            "suite.max_steps of the two runs must be the same",
        ),
    ],
)
def test_data_that_are_not_as_they_must_be_are_named(
    root: Path, capsys: pytest.CaptureFixture[str], path: Path, edit: Callable[[Any], None], message: str
) -> None:
    change(root / path / "run.json" if path == FAST else root / path, edit)
    before = (root / "README.md").read_text()
    assert main([], root) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(root / path) in error
    assert (root / "README.md").read_text() == before


def test_the_readmes_table_is_of_the_reference_weights_alone(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / FAST)
    write_run(root / FAST, count=50, run=RUN, checkpoint="other")
    assert main([], root) == 1
    assert f"is of the reference weights, got others in {NAME}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{END}"])
def test_markers_that_are_not_there_once_in_their_order_are_an_error(
    root: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (root / READMES[1]).write_text(text)
    assert main([], root) == 1
    assert f"{root / READMES[1]} must have the lines {BEGIN} and {END} once" in capsys.readouterr().err
    assert not (root / PLOT).exists()


def test_a_run_from_a_copy_proves_its_commit_by_its_trees(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def commit(text: str) -> str:
        for name in SOURCES:
            (root / name).mkdir(exist_ok=True)
            (root / name / "a.py").write_text(text)
        for words in (["init", "-q"], ["add", *SOURCES], ["commit", "-q", "-m", text]):
            run_tool("git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", *words)
        return run_tool("git", "-C", str(root), "rev-parse", "HEAD").decode().strip()

    old = commit("old")
    origin = {"trees": code_state(root)["trees"]}  # and no commit, as from a copy without its history
    commit("new")
    change(root / FAST / "run.json", lambda run: run["provenance"].update(origin))
    change(root / BENCH, lambda record: record["provenance"].update(origin))
    assert main([], root) == 0
    table = (root / READMES[1]).read_text()
    assert [line.split(" | ")[-2] for line in table.splitlines() if line.startswith("| fast ")] == [old[:12]]
    assert f"code: {old[:12]}" in table
    strange = {"provenance": {"trees": dict.fromkeys(SOURCES, "ab" * 20)}}
    change(root / FAST / "run.json", lambda run: run.update(resumed=[strange]))
    capsys.readouterr()
    assert main(["--check"], root) == 1
    error = capsys.readouterr().err
    assert f"{root / FAST}: no commit of this repository has its trees (conf abababababab, " in error
