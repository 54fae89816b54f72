"""Resume: whatever ended a run, going on with it gives the records of a run that nothing ended."""

import json
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.summary import summarise
from eval.episodes.resume import reopen
from eval.records.folders import RUN_FILE
from eval.records.reader import read_run
from eval.records.repair import repair
from eval.records.resume import (
    Changed,
    nothing_left,
    origin_changes,
    recorded,
    refuse_changed,
    refuse_joined,
)
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RecordingError, RunWriter
from eval.runners.recorder import RunFailed
from tests.eval.fake_run import plan_of, results, run
from tests.eval.fakes import FAULTS, STEP_S, ArithmeticPolicy
from tests.eval.killed import kill_at_a_random_moment

Episode = Callable[..., EpisodeRecord]
Inference = Callable[..., InferenceRecord]


def test_a_run_that_is_killed_and_resumed_three_times_records_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(run(tmp_path / "whole"))
    seed = time.time_ns()
    print(f"seed {seed}")  # noqa: T201  to repeat a failure
    chance = random.Random(seed)
    with monkeypatch.context() as patch:
        patch.setenv(STEP_S, "0.01")
        for _ in range(3):
            command = [sys.executable, "-m", "tests.eval.fake_run", str(tmp_path / "killed"), "local", "{}"]
            kill_at_a_random_moment(command, tmp_path / "killed", chance)
    resumed = run(tmp_path / "killed")
    assert results(resumed) == expected
    assert resumed.run["finished"] is True
    assert len(resumed.run["resumed"]) <= 3
    assert resumed.run["engagement"]["vision"]["calls"] >= len(resumed.inferences)


def test_shards_in_any_order_record_the_same(tmp_path: Path) -> None:
    whole = results(run(tmp_path / "whole"))
    parts = [run(tmp_path / f"part{i}", plan_of((2, 0, 1), shard=f"{i}/3")) for i in (1, 2, 3)]
    assert {key: value for part in parts for key, value in results(part).items()} == whole
    assert sum(len(part.episodes) for part in parts) == len(whole)


def test_an_error_is_tried_again_and_the_last_attempt_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "raise-1-1").touch()
    monkeypatch.setenv(FAULTS, str(faults))
    first = run(tmp_path / "run", plan_of(max_errors=1))
    assert [e.error_type for e in first.episodes if e.success is None] == ["RuntimeError"]
    resumed = run(tmp_path / "run")
    assert results(resumed) == results(run(tmp_path / "whole"))
    (error,) = summarise(resumed).errors
    assert (error.error_message, error.retried) == ("the renderer gave up", True)


def test_a_finished_run_has_nothing_left_and_stays_finished(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    again = run(tmp_path / "run")
    assert results(again) == results(first)
    assert (again.run["finished"], again.run["engagement"]) == (True, first.run["engagement"])


def test_only_a_run_that_has_all_its_episodes_has_nothing_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished = run(folder)
    about = dict(finished.run)
    assert nothing_left(folder, about) == finished
    assert nothing_left(folder, about | {"finished": False}) is None
    more = {**about["episodes"][0], "count": 5}
    assert nothing_left(folder, about | {"episodes": [more]}) is None
    path = folder / "episodes.jsonl"
    path.write_bytes(path.read_bytes()[:-40])  # the last episode is lost
    assert nothing_left(folder, about) is None


@pytest.mark.parametrize(
    "damage",
    [b'{"suite": "libero_sp', b"\x00" * 40, b"\x00" * 40 + b"\n"],
    ids=["cut short", "zeros", "a line of zeros"],
)
@pytest.mark.parametrize("name", ["episodes.jsonl", "inferences.jsonl"])
def test_a_damaged_last_line_is_set_aside_shown_and_its_episode_run_again(
    tmp_path: Path, name: str, damage: bytes
) -> None:
    expected = results(run(tmp_path / "run"))
    path = tmp_path / "run" / name
    *kept, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept) + damage)
    resumed = run(tmp_path / "run")
    assert results(resumed) == expected
    assert (tmp_path / "run" / f"{name}.dropped").read_bytes().startswith(damage.rstrip(b"\n"))
    assert any("dropped an unreadable last line" in warning for warning in summarise(resumed).warnings)


def test_a_damaged_line_in_the_middle_is_not_repaired(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "episodes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"oops\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"episodes\.jsonl:2: corrupt"):
        reopen(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.dropped"))


@pytest.mark.parametrize("name", ["episodes.jsonl", "inferences.jsonl"])
def test_lines_of_another_version_are_refused_and_nothing_moves(tmp_path: Path, name: str) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(re.sub(rb"(?m)^\{", b'{"new": 1, ', path.read_bytes()))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=rf"{name}:1: corrupt: new: Unexpected .*, got 1; nothing was moved"):
        reopen(tmp_path / "run")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_last_line_that_is_no_record_but_whole_is_refused_and_nothing_moves(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "episodes.jsonl"
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(ValueError, match=r"episodes\.jsonl:13: corrupt: suite: Field required; nothing was"):
        reopen(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.dropped"))


def test_more_than_the_last_episodes_inferences_missing_is_refused_and_nothing_moves(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "inferences.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"inferences\.jsonl: the inferences of .* are not all in it"):
        reopen(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.dropped"))


def test_whole_records_are_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert repair(tmp_path / "run") == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_has_one_writer_at_a_time(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with reopen(tmp_path / "run"), pytest.raises(RecordingError, match="is being written by another process"):
        reopen(tmp_path / "run")
    with reopen(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 8}, "seed was 7, is 8"),
        ({"optim": {"vision": {"_target_": "b"}}}, "optim.vision._target_ was 'a', is 'b'"),
        ({"suite": {"name": "s", "tasks": [0, 1]}}, "suite.tasks was [0], is [0, 1]"),
        ({"runner": {"name": "ray"}, "video": "all"}, None),
    ],
)
def test_a_changed_configuration_is_refused_with_the_difference(
    tmp_path: Path, changes: dict[str, Any], difference: str | None
) -> None:
    config = {
        "seed": 7,
        "optim": {"vision": {"_target_": "a"}},
        "suite": {"name": "s", "tasks": [0]},
        "runner": {"name": "local"},
        "video": "none",
    }
    if difference is None:
        refuse_changed(tmp_path, {"config": config}, {"config": config | changes})
        return
    with pytest.raises(Changed) as refused:
        refuse_changed(tmp_path, {"config": config}, {"config": config | changes})
    assert str(refused.value) == f"{tmp_path} has another configuration, policy or simulator: {difference}"


def test_other_weights_or_another_simulator_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with reopen(tmp_path / "run") as earlier:
        same: dict[str, Any] = {"checkpoint": "arithmetic", "weights_sha256": "0" * 64}
        with pytest.raises(Changed, match=r"policy weights_sha256 was '0+', is '1+'"):
            earlier.rest_of(plan_of(), same | {"weights_sha256": "1" * 64}, {"gl": "none"})
        with pytest.raises(Changed, match="simulator gl was 'none', is 'egl'"):
            earlier.rest_of(plan_of(), same, {"gl": "egl"})
        with pytest.raises(Changed, match=r"holds 12 episodes of another plan: .*seeding"):
            earlier.rest_of(plan_of(seeding="openpi"), same, {"gl": "none"})
        with pytest.raises(Changed, match=r"holds 8 episodes of another plan: .*is not planned"):
            earlier.rest_of(plan_of(shard="1/3"), same, {"gl": "none"})


@pytest.mark.parametrize("planned", [[], [{"tasks": []}], [{"count": 2}], [{"seed": 8}]])
def test_a_plan_that_is_not_that_of_the_configuration_is_refused(
    planned: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / RUN_FILE
    written = json.loads(path.read_text())
    written["episodes"] = [{**written["episodes"][0], **changes} for changes in planned]
    path.write_text(json.dumps(written))
    same: dict[str, Any] = {"checkpoint": "arithmetic", "weights_sha256": "0" * 64}
    with (
        reopen(tmp_path / "run") as earlier,
        pytest.raises(Changed, match="are others than its config plans"),
    ):
        earlier.rest_of(plan_of(), same, {"gl": "none"})


def test_a_run_that_cannot_be_continued_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no records"):
        recorded(tmp_path)
    RunWriter(tmp_path / "begun").close()
    with pytest.raises(FileNotFoundError, match="the run ended before its first episode"):
        recorded(tmp_path / "begun")
    (tmp_path / "begun" / RUN_FILE).write_text("{}")
    with pytest.raises(ValueError, match="does not say which episodes were planned"):
        recorded(tmp_path / "begun")
    bare = {"episodes": [], "config": {}, "policy": {}, "overrides": [], "provenance": {}}
    (tmp_path / "begun" / RUN_FILE).write_text(json.dumps(bare))
    with pytest.raises(ValueError, match=r"lacks provenance\.git, provenance\.packages; start a new run"):
        recorded(tmp_path / "begun")
    with pytest.raises(ValueError, match=r"joins other runs \(a, b\); go on with those"):
        refuse_joined(tmp_path, {"parts": [{"folder": "a"}, {"folder": "b"}]})


def test_code_that_changed_in_between_is_shown(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with reopen(tmp_path / "run") as earlier:
        now = {"git": {"commit": "d", "dirty": True, "error": None}, "packages": {}}
        notes = earlier.describe({"runner": {}}, now)["notes"]
    assert notes == ["resumed: git.commit was c, is d", "resumed: git.dirty was False, is True"]


def test_of_code_with_trees_those_are_shown_that_changed() -> None:
    git = {"commit": None, "dirty": None, "error": "no git"}
    before = {"git": git, "trees": {"conf": "a", "eval": "b"}, "packages": {}}
    now = before | {"trees": {"conf": "a", "eval": "c"}}
    assert origin_changes(before, now) == ["trees.eval was b, is c"]
    old = {"git": git, "packages": {}}
    assert origin_changes(old, now) == []
    assert origin_changes(before, old) == ["trees.conf was a, is None", "trees.eval was b, is None"]


def test_a_disk_that_fills_up_stops_the_run_says_so_and_leaves_it_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    expected = results(run(tmp_path / "whole"))
    folder = tmp_path / "run"
    real = os.fsync

    def full(descriptor: int) -> None:
        if len((folder / "episodes.jsonl").read_bytes().splitlines()) > 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            RecordingError, match=r"No space left on device.*free space and go on with resume="
        ):
            run(folder)
    assert 0 < len(read_run(folder).episodes) < len(expected)
    assert results(run(folder)) == expected


def test_ctrl_c_leaves_a_run_that_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.eval.fakes import ArithmeticEnv

    expected = results(run(tmp_path / "whole"))
    step = ArithmeticEnv.step

    def interrupted(self: ArithmeticEnv, action: Any) -> bool:
        if (self.key.task_id, self.key.episode) == (1, 2):
            raise KeyboardInterrupt
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(ArithmeticEnv, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    assert len(read_run(tmp_path / "run").episodes) == 6
    assert results(run(tmp_path / "run")) == expected


def test_no_finished_episode_of_any_process_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    monkeypatch.setenv(FAULTS, str(faults))
    for task in range(3):
        for episode in range(4):
            (faults / f"always-policy-raise-{task}-{episode}").touch()
    for _ in range(2):
        with pytest.raises(RunFailed, match="no episode finished: all 12 raised"):
            run(tmp_path / "run", plan_of(max_errors=12))
    assert len(read_run(tmp_path / "run").superseded) == 12
    assert json.loads((tmp_path / "run" / RUN_FILE).read_text())["finished"] is False


def test_a_run_whose_calls_nobody_reported_is_no_result_after_a_resume_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArithmeticPolicy, "engagement", lambda self: {})
    for _ in range(2):  # the second has no episode left
        with pytest.raises(RunFailed, match="vision: no process could report how it was served"):
            run(tmp_path / "run")
    assert len(read_run(tmp_path / "run").episodes) == plan_of().num_episodes


def test_a_run_older_than_the_record_of_settings_goes_on_and_another_setting_is_refused(
    tmp_path: Path,
) -> None:
    old = {"policy": {"weights_sha256": "0" * 64}}
    steps = {"value": 10, "from": "config.json num_inference_steps"}
    new = {"policy": {**old["policy"], "settings": {"denoise_steps": steps}}}
    refuse_changed(tmp_path, old, new)
    refuse_changed(tmp_path, new, new)
    other = {"policy": {**old["policy"], "settings": {"denoise_steps": {**steps, "value": 3}}}}
    with pytest.raises(Changed, match=r"policy settings.denoise_steps.value was 10, is 3"):
        refuse_changed(tmp_path, new, other)
    scaled = [{"policy": {**new["policy"], "scales_sha256": digit * 64}} for digit in "12"]
    refuse_changed(tmp_path, new, scaled[0])
    with pytest.raises(Changed, match=r"policy scales_sha256 was '1+', is '2+'"):
        refuse_changed(tmp_path, *scaled)
