"""What a bench records, and the tables and the report that are made of it."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from optim.bench.tables import components, problems, render_setting, report, title
from optim.bench.tables import main as table_main
from tests.optim.bench.short import OBSERVATIONS, ROUNDS, WARMUP


def text(renderable: RenderableType) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_settings_come_in_the_order_of_the_command_line_each_with_all_policies(
    record: dict[str, Any],
) -> None:
    assert [setting["overrides"][-2:][0] for setting in record["settings"]] == [
        "denoise.steps=2",
        "denoise.steps=1",
    ]
    for setting in record["settings"]:
        assert [policy["label"] for policy in setting["policies"]] == [
            "baseline precision=float32",
            "baseline precision=bfloat16",
        ]
        assert [policy["facts"]["dtype"] for policy in setting["policies"]] == ["float32", "bfloat16"]


def test_policies_take_turns_and_every_round_has_one_observation(record: dict[str, Any]) -> None:
    first, second = (policy["samples"] for policy in record["settings"][0]["policies"])
    assert len(first) == len(second) == ROUNDS
    assert [sample["position"] for sample in first] == [0, 1, 0, 1, 0]
    assert [sample["position"] for sample in second] == [1, 0, 1, 0, 1]
    assert [sample["observation"] for sample in first] == [0, 1, 2, 3, 0]
    assert [sample["observation"] for sample in second] == [0, 1, 2, 3, 0]


def test_every_sample_has_all_stages_within_the_whole(record: dict[str, Any]) -> None:
    for policy in record["settings"][0]["policies"]:
        for sample in policy["samples"]:
            assert set(sample["stage_ms"]) == {"vision", "prefix", "denoise"}
            assert 0 < sum(sample["stage_ms"].values()) < sample["infer_ms"]


def test_every_call_is_counted_parity_and_warm_up_included(record: dict[str, Any]) -> None:
    for policy in record["settings"][0]["policies"]:
        for engaged in policy["engagement"].values():
            counts = (engaged["calls"], engaged["expected"], engaged["misses"])
            assert counts == (OBSERVATIONS + WARMUP + ROUNDS,) * 2 + (0,)
    assert problems(record) == []


def test_eager_float32_has_exact_parity_and_bfloat16_has_not(record: dict[str, Any]) -> None:
    exact, rounded = (policy["parity"] for policy in record["settings"][0]["policies"])
    assert exact == {
        "reference": "eager float32",
        "observations": OBSERVATIONS,
        "rel_error": 0.0,
        "cosine": 1.0,
        "max_abs": 0.0,
        "max_abs_action": 0.0,
    }
    assert 0 < rounded["rel_error"] < 0.02
    assert 0.999 < rounded["cosine"] < 1
    assert rounded["max_abs"] > 0
    assert rounded["max_abs_action"] > 0


def test_speed_up_is_against_the_first_policy(record: dict[str, Any]) -> None:
    first, second = record["settings"][0]["policies"]
    for sample in second["samples"]:
        sample["infer_ms"] = 10.0
        sample["stage_ms"] = {"vision": 1.0, "prefix": 2.0, "denoise": 4.0}
    for sample in first["samples"]:
        sample["infer_ms"] = 30.0
        sample["stage_ms"] = {"vision": 1.0, "prefix": 4.0, "denoise": 16.0}
    second["floor_ms"] = {"vision": 0.5, "prefix": 0.5, "denoise": 0.4}
    rows = {
        part.name: (part.stats.n, part.stats.p50_ms, part.speedup, part.share)
        for part in components(second, first)
    }
    assert rows == {
        "vision": (ROUNDS, 1.0, 1.0, 0.5),
        "prefix": (ROUNDS, 2.0, 2.0, 0.25),
        "denoise": (ROUNDS, 4.0, 4.0, 0.1),
        "all stages": (ROUNDS, 7.0, 3.0, pytest.approx(0.2)),
        "around the stages": (ROUNDS, 3.0, 3.0, None),
        "host to host": (ROUNDS, 10.0, 3.0, pytest.approx(0.14)),
    }
    assert {(part.speedup, part.share) for part in components(first, first)} == {(1.0, None)}
    first["floor_ms"] = {"vision": 0.5}  # no ceiling for the other stages, hence none for the sums
    assert [part.share for part in components(first, first)] == [0.5, *[None] * 5]


def test_a_machine_without_a_gpu_has_no_memory_and_no_roofline(record: dict[str, Any]) -> None:
    policy = record["settings"][0]["policies"][0]
    assert (policy["peak_bytes"], policy["floor_ms"]) == (None, None)


def test_the_record_alone_gives_the_same_tables_and_report_again(
    done: Path, record: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    again = json.loads(json.dumps(record))
    assert text(render_setting(again["settings"][0])) == text(render_setting(record["settings"][0]))
    assert (done / "report.md").read_text() == report(again)
    assert table_main([str(done / "bench.json")]) == 0
    assert title(record["settings"][1]).split(", prompt")[0] in capfd.readouterr().out


def test_a_report_says_what_results_must_say(done: Path) -> None:
    words = (done / "report.md").read_text()
    for item in (
        "RANDOM WEIGHTS (small)",
        "- Command: `",
        "- Commit: ",
        "- Hardware: ",
        "torch ",
        "SHA-256 ",
    ):
        assert item in words
    assert "| baseline precision=bfloat16 | denoise | eager | 11 | 11 | 0 | - |" in words
    assert words.count("\n## denoise steps ") == 2
    assert f"- Observations: {OBSERVATIONS} of libero_spatial tasks 0 (file some.npz)" in words
