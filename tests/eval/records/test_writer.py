"""Records: what is written is what is read, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.records.folders import refuse_full
from eval.records.reader import read_run
from eval.records.run_json import FORMAT
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RecordingError, RunWriter
from policies.files import ROOT

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]


def test_what_is_written_is_read_back(
    tmp_path: Path, make_episode: Episode, make_inference: Inference
) -> None:
    inferences = [make_inference(call=0, warmup=True), make_inference(call=1)]
    episode = make_episode(inferences=2)
    with RunWriter(tmp_path / "run") as writer:
        writer.write_run({"config": {"seed": 7}})
        for inference in inferences:
            writer.add_inference(inference)
        writer.add_episode(episode)
    run = read_run(tmp_path / "run")
    assert run.run == {"format": FORMAT, "config": {"seed": 7}}
    assert run.episodes == (episode,)
    assert run.inferences == tuple(inferences)
    assert run.warnings == ()


def test_an_episode_line_is_on_disk_after_its_inferences(
    tmp_path: Path, make_episode: Episode, make_inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record_fsync(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    with RunWriter(tmp_path) as writer:
        writer.add_inference(make_inference())
        monkeypatch.setattr(os, "fsync", record_fsync)
        writer.add_episode(make_episode(inferences=1))
    assert synced == ["inferences.jsonl", "episodes.jsonl"]


def test_a_killed_process_loses_no_recorded_episode(tmp_path: Path, make_episode: Episode) -> None:
    code = """if True:
        import json, os, signal, sys
        from pathlib import Path
        from eval.records.writer import EpisodeRecord, InferenceRecord, RunWriter
        writer = RunWriter(Path(sys.argv[1]))
        episode = EpisodeRecord(**json.loads(sys.argv[2]))
        writer.add_inference(InferenceRecord("libero_spatial", 0, 0, 7, 0, 20.5, {}, False, {}))
        writer.add_episode(episode)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    episode = make_episode(inferences=1)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), json.dumps(vars(episode))],
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    run = read_run(tmp_path / "run")
    assert run.episodes == (episode,)
    assert len(run.inferences) == 1


@pytest.mark.parametrize("name", ["episodes.jsonl", "inferences.jsonl", "run.json"])
def test_a_folder_with_records_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}\n")
    for refuse in (RunWriter, refuse_full):
        with pytest.raises(FileExistsError, match=f"already holds records .*{name}.* choose a new folder"):
            refuse(tmp_path)
    assert (tmp_path / name).read_text() == "{}\n"


def test_what_is_left_by_a_kill_before_the_first_episode_is_begun_again(
    tmp_path: Path, make_episode: Episode
) -> None:
    RunWriter(tmp_path).close()  # as a process that is killed before it writes run.json
    left = tmp_path / ".run.json.0123abcd.tmp"
    left.write_text('{"format"')
    refuse_full(tmp_path)
    with RunWriter(tmp_path) as writer:
        assert not left.exists()
        with pytest.raises(RecordingError, match="is being written by another process"):
            RunWriter(tmp_path)
        writer.write_run({})
        writer.add_episode(make_episode())
    assert len(read_run(tmp_path).episodes) == 1
    with pytest.raises(FileExistsError, match="already holds records"):
        refuse_full(tmp_path)


def test_a_run_that_another_process_began_meanwhile_is_not_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_episode: Episode
) -> None:
    RunWriter(tmp_path).close()

    def record_first(file: object, operation: int) -> None:
        monkeypatch.undo()
        with RunWriter(tmp_path) as other:
            other.add_episode(make_episode())

    monkeypatch.setattr("fcntl.flock", record_first)
    with pytest.raises(FileExistsError, match=r"already holds records \(episodes\.jsonl"):
        RunWriter(tmp_path)
    assert len(read_run(tmp_path).episodes) == 1


def test_a_folder_without_records_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no records: episodes\.jsonl is missing"):
        read_run(tmp_path)


def test_a_last_line_cut_short_is_dropped_and_reported(tmp_path: Path, make_episode: Episode) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write_run({})
        writer.add_episode(make_episode(episode=0))
        writer.add_episode(make_episode(episode=1))
    path = tmp_path / "episodes.jsonl"
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for length in range(second + 1, len(whole)):
        path.write_bytes(whole[:length])
        run = read_run(tmp_path)
        assert [episode.episode for episode in run.episodes] == [0]
        assert run.warnings == (
            f"episodes.jsonl:2: dropped a last line that was cut short ({length - second} bytes)",
        )


@pytest.mark.parametrize("line", [b"\x00\x00", b"{}", b'{"suite": NaN}', b"[1]", b""])
def test_a_corrupt_line_is_named_by_file_and_number(
    tmp_path: Path, make_episode: Episode, line: bytes
) -> None:
    with RunWriter(tmp_path) as writer:
        writer.add_episode(make_episode())
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"episodes\.jsonl:2: corrupt"):
        read_run(tmp_path)


def test_a_retry_replaces_an_error(tmp_path: Path, make_episode: Episode, make_inference: Inference) -> None:
    error = make_episode(error_type="RuntimeError", inferences=1)
    success = make_episode(inferences=2)
    with RunWriter(tmp_path) as writer:
        writer.write_run({})
        writer.add_inference(make_inference(infer_ms=99.0))
        writer.add_episode(error)
        writer.add_inference(make_inference(call=0))
        writer.add_inference(make_inference(call=1))
        writer.add_episode(success)
    run = read_run(tmp_path)
    assert run.episodes == (success,)
    assert run.superseded == (error,)
    assert [inference.infer_ms for inference in run.inferences] == [20.5, 20.5]
    assert len(run.warnings) == 1
    assert "1 of 3 inferences are not counted" in run.warnings[0]


def test_a_finished_episode_cannot_be_recorded_again(tmp_path: Path, make_episode: Episode) -> None:
    with RunWriter(tmp_path) as writer:
        writer.add_episode(make_episode())
        with pytest.raises(ValueError, match="has finished and is recorded"):
            writer.add_episode(make_episode(success=False))
    assert len(read_run(tmp_path).episodes) == 1
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match=r"episodes\.jsonl:2: .*recorded again after it finished"):
        read_run(tmp_path)


def test_inferences_of_an_interrupted_episode_are_kept_and_not_counted(
    tmp_path: Path, make_episode: Episode, make_inference: Inference
) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write_run({})
        writer.add_episode(make_episode())
        writer.add_inference(make_inference(episode=1))
    assert len((tmp_path / "inferences.jsonl").read_text().splitlines()) == 1
    run = read_run(tmp_path)
    assert run.inferences == ()
    assert "1 of 1 inferences are not counted" in run.warnings[0]


def test_episodes_that_run_side_by_side_keep_their_inferences(
    tmp_path: Path, make_episode: Episode, make_inference: Inference
) -> None:
    with RunWriter(tmp_path) as writer:
        for call in range(3):
            for episode in range(2):
                writer.add_inference(make_inference(episode=episode, call=call))
        for episode in range(2):
            writer.add_episode(make_episode(episode=episode, inferences=3))
    assert [(i.episode, i.call) for i in read_run(tmp_path).inferences] == [
        (episode, call) for episode in range(2) for call in range(3)
    ]


def test_missing_inferences_are_an_error(
    tmp_path: Path, make_episode: Episode, make_inference: Inference
) -> None:
    with RunWriter(tmp_path) as writer:
        writer.add_inference(make_inference())
        writer.add_episode(make_episode(inferences=1))
    (tmp_path / "inferences.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"made 1 inferences, but the file holds \[\]"):
        read_run(tmp_path)


def test_a_wrong_count_of_inferences_is_refused(
    tmp_path: Path, make_episode: Episode, make_inference: Inference
) -> None:
    with RunWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="inferences is 1, but 0 were added"):
            writer.add_episode(make_episode(inferences=1))
        with pytest.raises(ValueError, match="call must be 0, got 3"):
            writer.add_inference(make_inference(call=3))


def test_a_number_that_is_not_finite_is_named(
    tmp_path: Path, make_episode: Episode, make_inference: Inference
) -> None:
    with RunWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"call 0: vision_ms must be positive and finite, got nan"):
            writer.add_inference(make_inference(stage_ms={"vision": float("nan")}))
        with pytest.raises(ValueError, match="wall_s must be finite, got inf"):
            writer.add_episode(make_episode(wall_s=float("inf")))
        with pytest.raises(ValueError, match=r"run\.json\.a\[1\]\.b must be finite"):
            writer.write_run({"a": [0, {"b": float("nan")}]})
        with pytest.raises(TypeError, match="infer_ms is a float32, which has no JSON form"):
            writer.add_inference(make_inference(infer_ms=np.float32(1)))
    assert (tmp_path / "episodes.jsonl").read_bytes() == b""
    assert not (tmp_path / "run.json").exists()


def test_run_json_survives_a_failed_rewrite(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write_run({"status": "running"})
        with pytest.raises(TypeError, match=r"run\.json\.path is a PosixPath"):
            writer.write_run({"path": tmp_path})
    assert json.loads((tmp_path / "run.json").read_text()) == {"format": FORMAT, "status": "running"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "episodes.jsonl",
        "inferences.jsonl",
        "run.json",
    ]


def test_a_full_disk_leaves_whole_lines(
    tmp_path: Path, make_episode: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with RunWriter(tmp_path) as writer:
        writer.write_run({})
        writer.add_episode(make_episode(episode=0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(RecordingError, match="No space left"):
                writer.add_episode(make_episode(episode=1))
        writer.add_episode(make_episode(episode=2))
    run = read_run(tmp_path)
    assert [episode.episode for episode in run.episodes] == [0, 2]
    assert run.warnings == ()


def test_a_missing_run_json_is_reported(tmp_path: Path, make_episode: Episode) -> None:
    with RunWriter(tmp_path) as writer:
        writer.add_episode(make_episode())
    run = read_run(tmp_path)
    assert run.run == {}
    assert run.warnings == ("run.json is missing: the run stopped before it was written",)


def test_an_outcome_and_an_error_exclude_each_other(make_episode: Episode) -> None:
    assert make_episode().outcome == "success"
    assert make_episode(success=False).outcome == "failure"
    assert make_episode(error_type="RuntimeError").outcome == "error"
    with pytest.raises(ValueError, match="so there is no error to record"):
        replace(make_episode(), error_type="RuntimeError", error_message="late")
    with pytest.raises(ValueError, match="error_type and error_message must be given"):
        replace(make_episode(), success=None)
    with pytest.raises(ValueError, match="has actions_sha256 and initial_state_sha256"):
        replace(make_episode(), actions_sha256=None)
    with pytest.raises(ValueError, match="seeding must be one of"):
        make_episode(seeding="random")
