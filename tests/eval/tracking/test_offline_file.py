"""The offline W&B file read back: name, tags, histograms, artifact, and one id after a resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.records.reader import Run
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RunWriter
from eval.tracking.base import TrackedRun
from eval.tracking.wandb import WandbTracker
from policies.pi05.dims import STAGES
from tests.eval.wandb_file import artifacts, history, stored

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]


def test_a_run_has_a_name_tags_histograms_and_numbers_of_each_task_and_stage(
    tracked: tuple[Path, list[InferenceRecord]],
) -> None:
    folder, inferences = tracked
    [run] = [record.run for record in stored(folder) if record.WhichOneof("record_type") == "run"][:1]
    assert (run.display_name, run.run_group, list(run.tags)) == ("name", "group", ["spatial", "x" * 64])
    [row] = [row for row in history(folder) if any(name.startswith("latency/") for name in row)]
    values = {name: row[name] for name in row if name.startswith("latency/") and name.endswith("/values")}
    assert set(values) == {f"latency/{name}_ms/values" for name in ("infer", *STAGES)}
    assert {sum(counts) for counts in values.values()} == {sum(not record.warmup for record in inferences)}
    values = summary_of(folder)
    assert values["task/libero_spatial_00_success_rate"] == 0.5
    assert values["task/libero_spatial_00_errors"] == 1
    assert values["engagement/denoise_backend"] == "cuda_graph"
    assert values["engagement/denoise_misses"] == 0


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary that an offline run stored."""
    updates = [
        record.summary.update for record in stored(folder) if record.WhichOneof("record_type") == "summary"
    ]
    items = [item for update in updates for item in update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_the_records_and_the_page_are_an_artifact(
    tmp_path: Path, home: Path, make_episode: Episode, run_json: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    with RunWriter(folder) as writer:
        writer.write_run(run_json)
        writer.add_episode(make_episode())

    def page(folder: Path) -> Path:
        (folder / "report.html").write_text("<title>page</title>")
        return folder / "report.html"

    tracker = WandbTracker(page=page)
    tracker.start(TrackedRun({}, "name", folder, id="0123456789abcdef"))
    tracker.log_episode(make_episode(), None)
    tracker.finish({})
    [records] = artifacts(folder, "records")
    assert records.name == "records-0123456789abcdef"
    names = {entry.path for entry in records.manifest.contents}
    assert names == {"run.json", "episodes.jsonl", "inferences.jsonl", "report.html"}
    assert not any(home.rglob("*.html"))


def test_a_resumed_run_keeps_its_id_and_goes_on_with_its_axes_and_table(
    tmp_path: Path, home: Path, make_episode: Episode, make_inference: Inference, run_json: dict[str, Any]
) -> None:
    first = (make_episode(inferences=2), make_episode(episode=1, error_type="OSError"))
    inferences = tuple(make_inference(call=call) for call in range(2))
    earlier = Run(run_json, first, inferences)
    tracker = WandbTracker()
    tracker.start(TrackedRun({}, "name", tmp_path, id="0123456789abcdef", earlier=earlier))
    tracker.log_inference(make_inference(episode=1))
    tracker.log_episode(make_episode(episode=1, inferences=1), None)
    tracker.finish({})
    [run] = tmp_path.glob("wandb/offline-run-*")
    assert run.name.endswith("-0123456789abcdef")
    rows = history(tmp_path)
    assert [row["inference/index"] for row in rows if "inference/index" in row] == [2]
    assert [row["episode/index"] for row in rows if "episode/index" in row] == [2]
    (table,) = run.glob("files/media/table/episodes_*.table.json")
    content = json.loads(table.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(row["episode"], row["success"], row["inferences_alone"]) for row in rows] == [
        (0, True, 2),
        (1, True, 1),
    ]
