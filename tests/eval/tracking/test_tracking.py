"""Tracking: an offline W&B run holds every latency, under frozen names, and its failures cost no episode."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from rich.console import Console

from eval.analysis.summary import summarise
from eval.records.reader import Run
from eval.records.schema import ClockRecord, EpisodeRecord, InferenceRecord
from eval.tracking.base import NullTracker, SafeTracker, TrackedRun, TrackingError
from eval.tracking.wandb import WandbTracker, summary_metrics
from policies.files import ROOT
from tests.eval.wandb_file import artifacts, history, stored

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]

INFERENCE_METRICS = {
    "inference/index",
    "inference/task_id",
    "inference/episode",
    "inference/call",
    "inference/infer_ms",
    "inference/vision_ms",
    "inference/prefix_ms",
    "inference/denoise_ms",
    "inference/warmup",
    "inference/batch",
    "inference/under_load",
}
EPISODE_METRICS = {
    "episode/index",
    "episode/success",
    "episode/steps",
    "episode/inferences",
    "episode/wall_s",
    "episode/error",
    "episode/success_rate",
}
EPISODE_COLUMNS = [
    *("suite", "task_id", "instruction", "episode", "seed", "seeding", "success", "steps", "inferences"),
    *("wall_s", "error_type", "error_message", "inferences_alone", "p50_ms", "video"),
]
SUMMARY_METRICS = {
    "summary/vision_hz",
    "summary/prefix_hz",
    "summary/denoise_hz",
    "summary/around_hz",
    "summary/success_rate",
    "summary/success_rate_low",
    "summary/success_rate_high",
    "summary/successes",
    "summary/finished",
    "summary/errors",
    "summary/inferences",
    "summary/warmup_inferences",
    "summary/infer_hz",
    *(
        f"summary/{name}_ms_{statistic}"
        for name in ("infer", "vision", "prefix", "denoise", "around")
        for statistic in ("mean", "p50", "p95", "p99")
    ),
}


class FailingTracker(NullTracker):
    """Fails at everything after the start, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def log_inference(self, record: InferenceRecord) -> None:
        self.asked.append("inference")
        raise ConnectionError("broken [pipe]")

    def log_episode(self, record: EpisodeRecord, video: Path | None) -> None:
        self.asked.append("episode")
        raise OSError("disk full")

    def finish(self, summary: dict[str, Any]) -> None:
        self.asked.append("finish")
        raise TimeoutError("still broken")


def test_an_offline_run_holds_every_latency(tracked: tuple[Path, list[InferenceRecord]]) -> None:
    folder, inferences = tracked
    rows = [row for row in history(folder) if "inference/index" in row]
    assert [row["inference/index"] for row in rows] == list(range(120))
    assert [row["inference/infer_ms"] for row in rows] == [record.infer_ms for record in inferences]
    assert [row["inference/vision_ms"] for row in rows] == [4.25] * 120
    assert [row["inference/warmup"] for row in rows] == [1] + [0] * 119
    assert [(row["inference/episode"], row["inference/call"]) for row in rows] == [
        (record.episode, record.call) for record in inferences
    ]


def test_metric_names_are_frozen(tracked: tuple[Path, list[InferenceRecord]]) -> None:
    folder, _ = tracked
    rows = history(folder)
    assert set().union(*(row for row in rows if "inference/index" in row)) == INFERENCE_METRICS
    names = set().union(*(row for row in rows if "episode/index" in row))
    assert {name for name in names if not name.startswith("episode/video")} == EPISODE_METRICS
    assert any(name.startswith("episode/video") for name in names)
    updates = [
        record.summary.update for record in stored(folder) if record.WhichOneof("record_type") == "summary"
    ]
    summary = {item.key or "/".join(item.nested_key) for update in updates for item in update}
    assert {name for name in summary if name.startswith("summary/")} == SUMMARY_METRICS
    assert not [name for name in summary if " " in name]


def test_inferences_and_episodes_have_axes_of_their_own(tracked: tuple[Path, list[InferenceRecord]]) -> None:
    folder, _ = tracked
    metrics = [record.metric for record in stored(folder) if record.WhichOneof("record_type") == "metric"]
    assert {metric.glob_name: metric.step_metric for metric in metrics if metric.glob_name} == {
        "inference/*": "inference/index",
        "episode/*": "episode/index",
    }


def test_an_error_has_no_success_and_does_not_move_the_rate(
    tracked: tuple[Path, list[InferenceRecord]],
) -> None:
    folder, _ = tracked
    rows = [row for row in history(folder) if "episode/index" in row]
    assert [row.get("episode/success") for row in rows] == [1, 0, None]
    assert [row["episode/error"] for row in rows] == [0, 0, 1]
    assert [row["episode/success_rate"] for row in rows] == [1.0, 0.5, 0.5]


def test_the_table_and_the_video_are_under_the_run_and_nothing_is_in_the_home(
    tracked: tuple[Path, list[InferenceRecord]], home: Path
) -> None:
    folder, _ = tracked
    wandb.teardown()
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/episodes_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == EPISODE_COLUMNS
    assert len(content["data"]) == 3
    assert len(list(folder.glob("wandb/offline-run-*/files/media/videos/episode/video_*.mp4"))) == 1
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(row["inferences_alone"], row["p50_ms"]) for row in rows] == [
        (39, 20 + 20 / 128),  # the first was a warm-up
        (40, 21 + 19.5 / 128),
        (40, 22 + 19.5 / 128),
    ]
    [table] = artifacts(folder, "run_table")  # what W&B shows; the file above has no media
    files = {entry.path: Path(entry.local_path) for entry in table.manifest.contents}
    content = json.loads(files["episodes.table.json"].read_text())
    videos = [row[content["columns"].index("video")] for row in content["data"]]
    assert (videos[0], videos[2]) == (None, None)
    assert files[videos[1]["path"]].stat().st_size > 0
    assert not any(path.is_relative_to(home) for path in files.values())
    assert [path.name for path in folder.iterdir()] == ["wandb"]
    assert not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".log"]


def test_offline_prints_nothing_and_needs_no_login(tmp_path: Path, home: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from eval.tracking.base import TrackedRun
        from eval.tracking.wandb import WandbTracker
        tracker = WandbTracker()
        tracker.start(TrackedRun({}, "name", Path(sys.argv[1])))
        tracker.finish({})
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_online_without_a_login_fails_at_the_check_and_does_not_ask(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    safe = SafeTracker(WandbTracker(mode="online"))
    with pytest.raises(TrackingError, match="online needs a W&B login, and there is none: set WANDB_API_KEY"):
        safe.check()
    assert capfd.readouterr() == ("", "")


def test_online_never_goes_on_untracked(tmp_path: Path, home: Path) -> None:
    safe = SafeTracker(WandbTracker(mode="online"))
    with pytest.raises(TrackingError, match=r"W&B did not open the run: .*; or use tracking mode offline"):
        safe.start(TrackedRun({}, "name", tmp_path / "run"))


def test_offline_goes_on_when_the_library_cannot_start(
    tmp_path: Path, home: Path, make_episode: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise wandb.errors.CommError("no service")

    monkeypatch.setattr(wandb, "init", refuse)
    console = Console(file=io.StringIO(), width=200)
    safe = SafeTracker(WandbTracker(), console)
    safe.start(TrackedRun({}, "name", tmp_path / "run"))
    safe.log_episode(make_episode(), None)
    safe.finish({})
    assert safe.error == "CommError at the start of the run: no service"


def test_disabled_writes_nothing(tmp_path: Path, home: Path, make_inference: Inference) -> None:
    tracker = WandbTracker(mode="disabled")
    tracker.start(TrackedRun({}, "name", tmp_path / "run"))
    tracker.log_inference(make_inference())
    tracker.finish({})
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tracking mode must be one of .* got 'dryrun'"):
        WandbTracker(mode="dryrun")


def test_a_failure_is_told_once_and_the_run_goes_on(
    tmp_path: Path, make_episode: Episode, make_inference: Inference
) -> None:
    err = io.StringIO()
    failing = FailingTracker()
    safe = SafeTracker(failing, Console(file=err, width=40))
    safe.start(TrackedRun({}, "name", tmp_path))
    for call in range(3):
        safe.log_inference(make_inference(call=call))
    safe.log_episode(make_episode(), None)
    safe.finish({})
    assert failing.asked == ["inference", "finish"]
    assert safe.error == (
        "ConnectionError at inference 0 of libero_spatial-task0-episode0-seed7: broken [pipe]"
    )
    assert err.getvalue() == f"tracking stopped, the records on disk go on: {safe.error}\n"


@pytest.mark.parametrize(
    "environ",
    [
        {"WANDB_RUN_ID": "fixed"},
        {"WANDB_RUN_ID": "fixed", "WANDB_RESUME": "must"},
        {"WANDB_RESUME_FROM": "fixed?_step=3"},
        {"WANDB_RUN_ID": "fixed", "WANDB_SWEEP_ID": "abc"},
    ],
    ids=lambda environ: " ".join(environ),
)
def test_each_run_has_an_id_of_its_own_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ids = set()
    for name in ("a", "b"):
        tracker = WandbTracker()
        tracker.start(TrackedRun({}, "run", tmp_path / name, None, []))
        tracker.finish({})
        ids |= {path.name.rpartition("-")[2] for path in tmp_path.glob(f"{name}/wandb/offline-run-*")}
    assert len(ids - {"fixed"}) == 2
    assert {name: os.environ.get(name) for name in environ} == environ


def test_a_wandb_failure_costs_no_episode(
    tmp_path: Path, home: Path, make_episode: Episode, make_inference: Inference
) -> None:
    tracker = WandbTracker()
    safe = SafeTracker(tracker, Console(file=io.StringIO()))
    safe.start(TrackedRun({}, "name", tmp_path))
    safe.log_episode(make_episode(), tmp_path / "missing.mp4")
    assert safe.error is not None
    assert "missing.mp4" in safe.error
    safe.log_inference(make_inference())
    safe.finish({})
    assert not [row for row in history(tmp_path) if "inference/index" in row]


def test_a_run_without_numbers_has_fewer_metrics(make_episode: Episode, run_json: dict[str, Any]) -> None:
    assert summary_metrics({}) == {}
    summary = summarise(Run(run_json, (make_episode(error_type="OSError"),), ()))
    metrics = summary_metrics(summary.to_dict())
    assert {name: value for name, value in metrics.items() if name.startswith("summary/")} == {
        "summary/successes": 0,
        "summary/finished": 0,
        "summary/errors": 1,
        "summary/warmup_inferences": 0,
    }
    assert metrics["task/libero_spatial_00_errors"] == 1
    assert "task/libero_spatial_00_success_rate" not in metrics


def test_what_a_clock_did_has_metrics_of_its_own(
    tmp_path: Path, home: Path, make_episode: Episode, run_json: dict[str, Any]
) -> None:
    clock = ClockRecord("rtc", 2.0, 1.5, 4, 4.0, 4, 6.0, 9, 0.25, 1.0)
    episode = make_episode(clock=clock)
    tracker = WandbTracker(mode="offline", project="test")
    tracker.start(TrackedRun({}, "name", tmp_path / "run", None, []))
    tracker.log_episode(episode, None)
    summary = summarise(Run(run_json, (episode,), ())).to_dict()
    tracker.finish(summary)
    [row] = [row for row in history(tmp_path / "run") if "episode/index" in row]
    assert {name: value for name, value in row.items() if "clock" in name} == {
        "episode/clock_speed": 2.0,
        "episode/clock_robot_s": 1.5,
        "episode/clock_held_steps": 4,
        "episode/clock_delay_mean": 4.0,
        "episode/clock_delay_max": 4,
        "episode/clock_age_mean": 6.0,
        "episode/clock_age_max": 9,
        "episode/clock_seam_mean": 0.25,
        "episode/clock_seam_max": 1.0,
    }
    assert {name: value for name, value in summary_metrics(summary).items() if "clock" in name} == {
        "summary/clock_speed": 2.0,
        "summary/clock_delay": 4.0,
        "summary/clock_robot_s": 1.5,
        "summary/clock_held_steps": 4.0,
        "summary/clock_age": 6.0,
        "summary/clock_seam": 0.25,
    }
