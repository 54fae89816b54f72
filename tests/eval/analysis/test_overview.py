"""Runs side by side: speed-up, verdict and front from records on the disk, and what is kept out of them."""

from pathlib import Path
from typing import Any

import pytest

from eval.analysis.overview import Overview, Source, overview
from eval.analysis.sources import base_first, read_sources
from eval.analysis.summary import RANDOM_WEIGHTS
from eval.records.reader import read_run
from tests.eval.written_runs import run_json, write_run


@pytest.fixture(autouse=True)
def _no_power_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def side_by_side(*folders: Path, margin: float = 2.0) -> Overview:
    return overview([source for folder in folders for source in read_sources(folder)], margin)


def test_speed_up_verdict_and_front_are_against_the_first_run(tmp_path: Path) -> None:
    result = side_by_side(
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", policy="fast", infer_ms=5.0),
        write_run(tmp_path / "c", policy="broken", infer_ms=4.0, failures=range(60)),
        write_run(tmp_path / "d", policy="slow", infer_ms=30.0, failures=[1]),
    )
    first, fast, broken, slow = result.entries
    assert (first.speed_up, first.comparison, first.verdict) == (None, None, "-")
    assert fast.speed_up == pytest.approx(4.0)
    assert (fast.verdict, broken.verdict) == ("non-inferior", "inferior")
    assert [entry.on_front for entry in result.entries] == [False, True, True, False]
    assert slow.speed_up == pytest.approx(2 / 3)


def test_of_two_equal_runs_both_are_on_the_front(tmp_path: Path) -> None:
    result = side_by_side(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert [entry.on_front for entry in result.entries] == [True, True]
    assert [entry.label for entry in result.entries] == ["baseline, 10 steps", "baseline, 10 steps (2)"]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"under_load": True}, "latency under load"),
        ({"run": {"weights_label": RANDOM_WEIGHTS}, "weights_label": RANDOM_WEIGHTS}, RANDOM_WEIGHTS),
        ({"run": {"config": {"shard": "1/2"}}}, "shard 1/2"),
        ({"run": {"parts": [{}, {}]}}, "2 parts joined"),
        ({"run": {"finished": False}}, "not finished"),
        ({"errors": [3]}, "1 error"),
        ({"errors": [3, 4]}, "2 errors"),
    ],
)
def test_what_must_be_known_of_a_run_is_flagged(tmp_path: Path, changes: dict[str, Any], flag: str) -> None:
    result = side_by_side(write_run(tmp_path / "a"), write_run(tmp_path / "b", infer_ms=1.0, **changes))
    assert flag in result.entries[1].flags


def test_loads_random_weights_misses_and_other_devices_are_not_on_the_front(tmp_path: Path) -> None:
    served = run_json("x", 10, 200)["engagement"]
    missed = {**served, "denoise": {"backend": "x", "calls": 200, "misses": 1}}
    random = {"run": {"weights_label": RANDOM_WEIGHTS}, "weights_label": RANDOM_WEIGHTS}
    result = side_by_side(
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", infer_ms=1.0, under_load=True),
        write_run(tmp_path / "c", infer_ms=1.0, **random),
        write_run(tmp_path / "d", policy="x", infer_ms=1.0, run={"engagement": missed}),
        write_run(
            tmp_path / "e", infer_ms=1.0, run={"policy": {**run_json("", 10, 1)["policy"], "device": "cpu"}}
        ),
    )
    assert [entry.on_front for entry in result.entries] == [True, False, False, False, False]
    load, untrained, missing, elsewhere = result.entries[1:]
    assert (load.latency, load.speed_up, load.spreads["host to host"].n) == (None, None, 200)
    assert untrained.verdict == "not comparable"
    assert "this run has RANDOM WEIGHTS" in str(untrained.not_comparable)
    assert untrained.speed_up == pytest.approx(20.0)
    assert missing.verdict == "not engaged"
    assert elsewhere.speed_up is None


def test_labels_name_the_overrides_that_not_all_runs_share(tmp_path: Path) -> None:
    common = ["protocol=full", "policy=baseline"]
    result = side_by_side(
        write_run(tmp_path / "a", run={"overrides": [*common, "optim/vision=eager"]}),
        write_run(tmp_path / "b", run={"overrides": [*common, "optim/vision=fp8"]}),
        write_run(tmp_path / "c", steps=1, run={"overrides": common}),
    )
    assert [entry.label for entry in result.entries] == [
        "baseline, 10 steps, optim/vision=eager",
        "baseline, 10 steps, optim/vision=fp8",
        "baseline, 1 step",
    ]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run: no episodes\.jsonl"):
        read_sources(tmp_path)


def test_many_runs_without_an_episode_are_named_up_to_a_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no episode to report on: /0: not run yet; .* and 2 more$"):
        overview([Source(Path(f"/{i}"), None, "not run yet") for i in range(12)], 2.0)


@pytest.mark.parametrize(("count", "speed_up"), [(4, None), (5, 4.0)])
def test_fewer_than_five_quiet_episodes_give_no_ratio_and_a_flag(
    tmp_path: Path, count: int, speed_up: float | None
) -> None:
    runs = [write_run(tmp_path / f"{ms}", count=count, infer_ms=ms) for ms in (20.0, 5.0)]
    fast = overview([Source(folder, read_run(folder)) for folder in runs], 2.0).entries[1]
    assert fast.speed_up == (None if speed_up is None else pytest.approx(speed_up))
    assert ("latency of 4 quiet episodes" in fast.flags) is (speed_up is None)


def test_a_base_that_is_named_comes_first_or_is_an_error(tmp_path: Path) -> None:
    sources = [Source(folder, read_run(folder)) for folder in (write_run(tmp_path / name) for name in "abc")]
    sources.append(Source(tmp_path / "d", None, "not run yet"))
    assert [source.folder.name for source in base_first(sources, tmp_path / "x" / ".." / "b")] == [*"bacd"]
    assert base_first(sources, None) == sources
    with pytest.raises(ValueError, match=r"--base e is none of the runs; name one of .*/a, "):
        base_first(sources, Path("e"))
    with pytest.raises(ValueError, match="d has no numbers: not run yet"):
        base_first(sources, tmp_path / "d")
