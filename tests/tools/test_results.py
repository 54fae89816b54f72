"""The README's results: what the committed data give, and what is said when they are not as they must be."""

import json
import re
import shutil
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.analysis.summary import RANDOM_WEIGHTS
from eval.app import CONF
from eval.config.groups import options
from eval.config.schema import register
from eval.report.cli import main as report
from policies.files import ROOT
from tools.results.cli import BEGIN, END, README, main
from tools.results.data import DATA, REPORTS

COMPARED = DATA / "2026-11-23_optimised_stages_h200"
BENCH = COMPARED / "bench.json"
PLOT = REPORTS / f"{COMPARED.name}_latency.svg"
COMPARISON = COMPARED / "compare_native_fp8_10.md"
TIMED = DATA / "2026-11-23_libero_spatial_500"
PAGE = REPORTS / f"{TIMED.name}.html"
LATER = DATA / "2099-01-01_later"
RUN = COMPARED / "runs" / "native_fp8_10" / "t3"
REPORTED = DATA / "2026-11-23_reported_figures" / "reported.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of what the results are made of and written to, but for inferences and their page."""
    shutil.copytree(
        ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("inferences.jsonl", "*.html")
    )
    for name in (README, Path("policies", "reference", "README.md")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def timed(root: Path) -> Path:
    """The same with inferences, made up, in one folder."""
    for run in (root / TIMED / "runs").iterdir():
        engagement = json.loads((run / "run.json").read_text())["engagement"]
        served = {
            "stage_ms": dict.fromkeys(engagement, 2.0),
            "backends": {stage: of["backend"] for stage, of in engagement.items()},
            "warmup": False,
        }
        with (run / "inferences.jsonl").open("w") as file:
            for line in (run / "episodes.jsonl").read_text().splitlines():
                episode = json.loads(line)
                key = {name: episode[name] for name in ("suite", "task_id", "episode", "seed")}
                for call in range(episode["inferences"]):
                    file.write(json.dumps({**key, "call": call, "infer_ms": 7.0 + call % 3, **served}) + "\n")
    assert main([], root) == 0
    return root


@pytest.fixture
def two_benches(root: Path) -> Path:
    """The same with a bench of other policies, recorded last."""

    def other(bench: Any) -> None:
        bench["provenance"]["time"] = "2099-01-01T00:00:00+00:00"
        for setting in bench["settings"]:
            baseline, _, realtime, native = setting["policies"]
            realtime["label"] = "realtime"
            setting["policies"] = [baseline, native, realtime]

    (root / LATER).mkdir()
    shutil.copy(root / BENCH, root / LATER)
    change(root / LATER / "bench.json", other)
    (root / REPORTS / f"{LATER.name}.md").write_text("# Later\n")
    assert main([], root) == 0
    return root


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def change_episode(path: Path, **fields: Any) -> None:
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | fields), *others]) + "\n")


def error_of(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = (root / README).read_text()
    assert main([], root) == 1
    assert (root / README).read_text() == before
    return capsys.readouterr().err


def test_the_readme_is_what_the_data_give() -> None:
    assert main(["--check"]) == 0, "run make results"


def test_what_is_up_to_date_is_said_beside_what_was_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], root) == 0
    [line] = capsys.readouterr().err.splitlines()
    kept = line.removeprefix("up to date: ").split(", ")
    assert {str(README), str(PLOT), str(COMPARISON)} <= set(kept)
    (root / PLOT).unlink()
    assert main([], root) == 0
    others = ", ".join(name for name in kept if name != str(PLOT))
    assert capsys.readouterr().err.splitlines() == [f"wrote {PLOT}", f"up to date: {others}"]


def test_a_number_typed_into_the_readme_is_stale(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], root) == 0
    text = (root / README).read_text()
    (root / README).write_text(text.replace("500 / 500 (", "501 / 501 (", 1))
    assert main(["--check"], root) == 1
    assert "README.md is not what the data give; run make results" in capsys.readouterr().err
    assert main([], root) == 0
    assert (root / README).read_text() == text


def test_a_stale_plot_and_a_missing_comparison_fail_the_check(root: Path) -> None:
    for path in (PLOT, COMPARISON):
        (root / path).unlink()
        assert main(["--check"], root) == 1
        assert not (root / path).exists()
        assert main([], root) == 0
        assert main(["--check"], root) == 0


def test_a_failed_episode_changes_the_table_and_the_comparison(root: Path) -> None:
    change_episode(root / RUN / "episodes.jsonl", success=False)
    assert main([], root) == 0
    [row] = [
        line
        for line in (root / README).read_text().splitlines()
        if line.startswith("| native_fp8 | 10 | reference | libero_spatial, full |")
    ]
    assert "| 99 / 100 (94.6 to 99.8 %) |" in row
    assert "NEW lost 1 and won 0 of 100 episodes" in (root / COMPARISON).read_text()


def test_no_two_rows_of_the_success_table_are_called_the_same() -> None:
    text = (ROOT / README).read_text()
    table = text[text.index(BEGIN) : text.index("\nLatency of ")]
    rows = [line.split(" | ") for line in table.splitlines() if " (95 % Wilson)" not in line and "%)" in line]
    names = [(*row[:4], row[5]) for row in rows]  # all but success and source
    assert len(names) == len(set(names)) > 10


@pytest.mark.parametrize(
    ("runner", "name"),
    [
        ({"name": "local"}, "native_fp8"),
        ({"name": "ray", "max_batch": 1, "batch_sizes": [1]}, "native_fp8"),
        ({"name": "ray", "max_batch": 8, "batch_sizes": None}, "native_fp8, batches of up to 8"),
        ({"name": "ray", "max_batch": 6, "batch_sizes": [1, 2, 4]}, "native_fp8, batches of up to 4"),
        ({"name": "ray", "max_batch": 8, "batch_sizes": [1]}, "native_fp8"),  # the policy takes one at a time
    ],
)
def test_a_run_served_in_batches_is_called_so(root: Path, runner: dict[str, Any], name: str) -> None:
    change(root / RUN / "run.json", lambda of: of.update(runner=runner))  # of one part of the run
    assert main([], root) == 0
    row = rf"\n\| {re.escape(name)} \| 10[^|]* \| reference \| libero_spatial, full \|"
    assert re.search(row, (root / README).read_text())


def test_the_readme_says_how_each_policy_makes_images() -> None:
    table = (ROOT / "docs/policies-and-backends.md").read_text().split("\n| `policy=` |")[1].split("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", table, re.MULTILINE))
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        policies = {name: compose("config", [f"policy={name}"]).policy for name in options("policy")}
    assert told == {name: "-" if of.kind == "oracle" else of.images for name, of in policies.items()}


def test_an_episode_that_raised_is_shown_apart(root: Path) -> None:
    failed = {"success": None, "error_type": "OSError", "error_message": "GL context lost"}
    change_episode(root / RUN / "episodes.jsonl", **failed, actions_sha256=None)
    assert main([], root) == 0
    assert "| 99 / 99 (96.3 to 100.0 %), errors: 1 |" in (root / README).read_text()


def test_a_changed_latency_changes_table_and_plot(root: Path) -> None:
    def slower(bench: Any) -> None:
        native = bench["settings"][0]["policies"][3]
        for sample in native["samples"]:
            sample["infer_ms"] += 100

    policies = json.loads((root / BENCH).read_text())["settings"][0]["policies"]
    baseline, native = (
        statistics.median(sample["infer_ms"] for sample in policies[i]["samples"]) for i in (0, 3)
    )
    change(root / BENCH, slower)
    assert main([], root) == 0
    slow, ratio = f"{native + 100:.1f} ms", f"{baseline / (native + 100):.2f}x"
    assert re.search(rf"\| {slow} \| [\d.]+ ms \| {ratio} \|", (root / README).read_text())
    assert f"{slow}, {ratio}" in (root / PLOT).read_text()


def test_latency_and_success_are_kept_apart() -> None:
    text = (ROOT / README).read_text()
    part = text[text.index(BEGIN) : text.index(END)]
    success, *latencies = part.split("\nLatency of ")
    assert latencies
    for latency in latencies:
        sentence = latency.partition(". ")[0]
        assert (f"**{RANDOM_WEIGHTS} (" in sentence) is ("not of the weights whose success" in sentence)
        assert "Wilson" not in latency
    assert "host to host, 10 steps" not in success
    assert RANDOM_WEIGHTS in (ROOT / PLOT).read_text()


def test_the_plot_is_a_picture_that_needs_nothing_else() -> None:
    text = (ROOT / PLOT).read_text()
    picture = ET.fromstring(text)
    width, height = (float(picture.attrib[name]) for name in ("width", "height"))
    for box in picture.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"href|src=|url\(|<script", text)


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_a_missing_marker_is_named_with_its_file(
    root: Path, capsys: pytest.CaptureFixture[str], marker: str
) -> None:
    (root / README).write_text((root / README).read_text().replace(marker, ""))
    assert f"{root / README} must have the line {marker} once, found it 0 times" in error_of(root, capsys)


def test_markers_in_the_wrong_order_are_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / README).write_text(f"{END}\n{BEGIN}\n")
    assert f"{root / README} has {END} before {BEGIN}" in error_of(root, capsys)


@pytest.mark.parametrize(
    ("path", "edit", "message"),
    [
        (BENCH, lambda of: of.pop("rounds"), "the key 'rounds' is missing"),
        (BENCH, lambda of: of["provenance"].pop("time"), "the key 'time' is missing"),
        (
            BENCH,
            lambda of: of["settings"][0]["policies"][1]["samples"][0].pop("infer_ms"),
            "the key 'infer_ms' is missing",
        ),
        (
            BENCH,
            lambda of: of["settings"][0]["policies"][1]["engagement"]["prefix"].update(misses=1),
            "prefix served 73 of 73 calls and missed 1",
        ),
        (RUN / "run.json", lambda of: of["policy"].update(denoise_steps=9), "denoise_steps was 10, is 9"),
        (REPORTED, lambda of: of[0].pop("quote"), "figure 1: the key 'quote' is missing"),
        (REPORTED, lambda of: of[0].pop("finished"), "'finished'"),
        (REPORTED, lambda of: of[0].update(sucesses=1), "'sucesses'"),
        (REPORTED, lambda of: of[0].update(successes="500"), "successes must be a whole number, got '500'"),
        (REPORTED, lambda of: of[0].update(successes=499), "499 is not in the quote"),
        (REPORTED, lambda of: of[0].update(successes=501), "got 501 of 500"),
        (REPORTED, lambda of: of[0].update(quote="501 of 500"), "is not in docs/results/"),
        (REPORTED, lambda of: of[0].update(report="docs/none.md"), "docs/none.md"),
    ],
)
def test_malformed_data_name_file_and_key(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    path: Path,
    edit: Callable[[Any], None],
    message: str,
) -> None:
    change(root / path, edit)
    error = error_of(root, capsys)
    assert str(root / path) in error
    assert message in error


def test_a_damaged_line_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / RUN / "episodes.jsonl"
    path.write_text(path.read_text() + '{"suite": "libero_spatial"}\n')
    error = error_of(root, capsys)
    assert f"{path}:11: " in error
    assert "'task_id'" in error


def test_an_episode_that_is_there_twice_is_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / RUN / "episodes.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    assert "is recorded 2 times" in error_of(root, capsys)


def test_missing_episodes_are_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / RUN / "episodes.jsonl"
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[1:]))
    assert "native_fp8_10: 99 of 100 planned episodes are recorded" in error_of(root, capsys)


def test_success_of_random_weights_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = f"{RANDOM_WEIGHTS} (small)"
    for path in (root / RUN.parent).glob("*/run.json"):
        change(path, lambda of: of.update(weights_label=label))
    assert f"native_fp8_10: {label}: success means nothing" in error_of(root, capsys)


def test_data_without_a_report_are_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / f"docs/results/{COMPARED.name}.md").unlink()
    assert f"has no report; write docs/results/{COMPARED.name}.md" in error_of(root, capsys)


def test_without_a_bench_the_folder_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / DATA).glob("*/bench.json"):
        path.unlink()
    assert f"{root / DATA} holds no */bench.json" in error_of(root, capsys)


def test_every_bench_is_shown_the_last_recorded_first(two_benches: Path) -> None:
    parts = (two_benches / README).read_text().partition(END)[0].split("\nLatency of ")[1:]
    benches = sorted(
        (two_benches / DATA).glob("*/bench.json"),
        key=lambda path: json.loads(path.read_text())["provenance"]["time"],
        reverse=True,
    )
    assert benches[0].parent.name == LATER.name
    assert len(parts) == len(benches) >= 2
    for text, bench in zip(parts, benches, strict=True):
        labels = [of["label"] for of in json.loads(bench.read_text())["settings"][0]["policies"]]
        folder = bench.parent.name
        assert text.startswith(f"{', '.join(labels)}, **")
        assert f"([report](docs/results/{folder}.md))" in text
        assert f"](docs/results/{folder}_latency.svg)" in text
        assert re.findall(r"^\| (\w+).* \|$", text, re.MULTILINE) == ["policy", *labels]
        picture = (two_benches / REPORTS / f"{folder}_latency.svg").read_text()
        assert [label for label in ("trt_fp8", "realtime") if label in picture] == [
            label for label in ("trt_fp8", "realtime") if label in labels
        ]


def test_a_missed_call_is_an_error_in_any_bench(
    two_benches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def miss(bench: Any) -> None:
        bench["settings"][0]["policies"][1]["engagement"]["prefix"].update(misses=1)

    for path in (BENCH, LATER / "bench.json"):
        text = (two_benches / path).read_text()
        change(two_benches / path, miss)
        assert f"{two_benches / path}: " in error_of(two_benches, capsys)
        (two_benches / path).write_text(text)


def test_trained_weights_of_a_bench_are_not_said_to_be_others(root: Path) -> None:
    def trained(bench: Any) -> None:
        for setting in bench["settings"]:
            for policy in setting["policies"]:
                policy["facts"]["weights_label"] = "some/weights"

    change(root / BENCH, trained)
    assert main([], root) == 0
    [sentence] = [
        line
        for line in (root / README).read_text().splitlines()
        if f"({REPORTS}/{COMPARED.name}.md))." in line
    ]
    assert ", weights `some/weights`. " in sentence
    assert "not of the weights" not in sentence


def test_what_no_data_give_fails_and_is_not_deleted(
    two_benches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = REPORTS / f"{LATER.name}_latency.svg"
    (two_benches / LATER / "bench.json").unlink()
    others = (REPORTS / "old.html", COMPARED / "compare_old_10.md")
    for path in others:
        (two_benches / path).touch()
    capsys.readouterr()
    for arguments in ([], ["--check"]):
        assert main(arguments, two_benches) == 1
        error = capsys.readouterr().err
        for path in (plot, *others):
            assert f"error: {path} is of no data; remove it" in error
            assert (two_benches / path).exists()
    for path in (plot, *others):
        (two_benches / path).unlink()
    assert main(["--check"], two_benches) == 0


def test_each_run_with_the_denoise_steps_of_the_base_is_compared_with_it(root: Path) -> None:
    def compared() -> list[str]:
        return sorted(path.name for path in (root / COMPARED).glob("compare_*"))

    policies = ("full_optimized", "native_fp8", "trt_fp8")
    assert compared() == [f"compare_{name}_10.md" for name in policies]
    for name in policies:
        assert (
            (root / COMPARED / f"compare_{name}_10.md").read_text().startswith(f"# {name} against baseline")
        )
    runs = root / COMPARED / "runs"
    (runs / "native_fp8_3").rename(runs / "third_10")
    (runs / "native_fp8_10").rename(runs / "tenth")
    (root / COMPARISON).unlink()
    assert main([], root) == 0
    assert compared() == ["compare_full_optimized_10.md", "compare_tenth.md", "compare_trt_fp8_10.md"]


def test_without_a_base_nothing_is_compared(root: Path) -> None:
    shutil.rmtree(root / COMPARED / "runs" / "baseline_10")
    for path in (root / COMPARED).glob("compare_*"):
        path.unlink()
    assert main([], root) == 0
    assert not [*(root / COMPARED).glob("compare_*")]


def test_a_run_that_cannot_be_compared_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / RUN.parent).glob("*/run.json"):
        change(path, lambda of: of["config"]["suite"].update(max_steps=300))
    assert f"{root / RUN.parent}: suite.max_steps of the two runs must be the same" in error_of(root, capsys)


def test_a_comparison_is_of_success_alone(timed: Path) -> None:
    found = list((timed / TIMED).glob("compare_*"))
    assert found
    for path in found:
        assert "of 500 episodes" in path.read_text()
        assert "p50" not in path.read_text()


def test_the_page_is_what_the_report_makes_of_the_runs_the_base_first(
    timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(timed / TIMED / "runs" / "native_fp8_10", timed / TIMED / "runs" / "a_10")
    assert main([], timed) == 0
    names = sorted(path.name for path in (timed / TIMED / "runs").iterdir())
    assert names[0] == "a_10"
    names.sort(key=lambda name: name != "baseline_10")
    monkeypatch.chdir(timed)
    runs = [str(TIMED / "runs" / name) for name in names]
    assert report([*runs, "--out", "again.html", "--title", TIMED.name]) == 0
    text = (timed / PAGE).read_text()
    assert text == Path("again.html").read_text()
    assert len(text) < 1_000_000
    assert str(timed) not in text
    assert str(ROOT) not in text
    assert "1 torch threads" not in text


def test_runs_without_inferences_have_no_page(timed: Path) -> None:
    assert (timed / PAGE).exists()
    assert not (timed / REPORTS / f"{COMPARED.name}.html").exists()


def test_a_changed_inference_makes_the_page_stale(timed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], timed) == 0
    path = timed / TIMED / "runs" / "baseline_10" / "inferences.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [of | {"infer_ms": of["infer_ms"] + 100} for of in lines]
    path.write_text("".join(json.dumps(of) + "\n" for of in changed))
    capsys.readouterr()
    assert main(["--check"], timed) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")] == [
        f"error: {PAGE} is not what the data give; run make results"
    ]


def test_a_run_of_the_oracle_has_no_denoise_steps(root: Path) -> None:
    folder = root / COMPARED / "runs" / "oracle"
    shutil.copytree(root / RUN, folder)
    change(folder / "run.json", lambda of: of.update(policy={"kind": "oracle"}, engagement={}))
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    oracle = {"policy": "oracle", "checkpoint": None, "checkpoint_sha256": None}
    (folder / "episodes.jsonl").write_text(
        "".join(json.dumps(json.loads(of) | oracle) + "\n" for of in lines)
    )
    assert main([], root) == 0
    cells = "libero_spatial, full | 10 / 10 (72.2 to 100.0 %) | Intel(R) Xeon(R) Processor, egl |"
    assert f"| oracle | - | none | {cells}" in (root / README).read_text()
    assert not (root / COMPARED / "compare_oracle.md").exists()
