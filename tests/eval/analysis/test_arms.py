"""A perturbed run beside its control arm: paired by task, state and noise key, clustered by base task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.comparable import NotComparable, pair_key
from eval.analysis.comparison import compare
from eval.analysis.overview import Overview, Source, overview
from eval.analysis.statistics import by_cluster
from eval.records.reader import Run, read_run
from eval.records.schema import EpisodeRecord, InferenceRecord, to_json
from eval.records.writer import RunWriter
from eval.render.arms import COLUMNS, rows
from eval.render.overview import markdown
from eval.report.page import page
from eval.sim.plus import level_of, plus_tasks, start_of
from policies.base import EpisodeKey

CAMERA = "libero_spatial_plus_camera"
IDS = [task.task_id for task in plus_tasks("libero_spatial", "camera")]


@pytest.fixture
def write(
    tmp_path: Path,
    make_episode: Callable[..., EpisodeRecord],
    make_inference: Callable[..., InferenceRecord],
    run_json: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Run]:
    """Record a run of some tasks of LIBERO-Plus's camera, one episode each."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no power is lost here

    def written(
        name: str, suite: str, failures: list[int] | None = None, ids: list[int] = IDS, **changes: Any
    ) -> Run:
        with RunWriter(tmp_path / name) as writer:
            writer.write_run({**run_json, "planned_episodes": len(ids)})
            for task in ids:
                key = {"suite": suite, "task_id": task}
                writer.add_inference(make_inference(**key))
                success = task not in (failures or ())
                writer.add_episode(make_episode(**key, inferences=1, success=success, **changes))
        return read_run(tmp_path / name)

    return written


def test_arms_are_paired_by_task_and_state_and_drawn_by_base_task(write: Callable[..., Run]) -> None:
    lost = [task for task in IDS if start_of(CAMERA, task)[1] == 3]
    control = write("control", f"{CAMERA}_control")
    perturbed = write("perturbed", CAMERA, lost, initial_state_sha256="d" * 64)
    result = compare(control, perturbed, 2.0)
    assert (result.counts.n, result.counts.lost, result.counts.won) == (len(IDS), len(lost), 0)
    assert [task.task_id for task in result.tasks] == list(range(10))
    assert [task.counts.lost for task in result.tasks] == [0, 0, 0, len(lost), *[0] * 6]
    differences = {i: [-1 if i == 3 else 0] * task.counts.n for i, task in enumerate(result.tasks)}
    assert result.by_task == by_cluster(differences)
    assert result.by_task is not None
    assert result.by_task.low < result.newcombe.low - 0.1, "ten scenes know less than 376 episodes"
    assert {level: counts.n for level, counts in result.levels.items()} == {
        level: sum(level_of(CAMERA, task) == level for task in IDS) for level in range(1, 6)
    }
    assert result.lost == tuple(f"{CAMERA}-task{task}-episode0-seed7" for task in lost)
    assert not any("simulator state" in warning for warning in result.warnings)
    assert result.latency["host to host"].episodes == len(IDS)


def test_two_policies_on_one_plus_suite_are_drawn_by_base_task_too(write: Callable[..., Run]) -> None:
    result = compare(write("base", CAMERA), write("new", CAMERA, IDS[:40]), 2.0)
    assert len(result.tasks) == 10


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (CAMERA, f"{CAMERA}_control", "; the control arm comes first: NEW, then BASE$"),
        (
            "libero_spatial",
            CAMERA,
            "; pair tasks of libero_spatial with perturbed ones by the control arm, which has their noise "
            f"keys: suite={CAMERA} suite.control=true$",
        ),
        ("libero_spatial_plus_robot", "libero_spatial_plus_pose", "; pair tasks of libero_spatial with"),
        (
            "libero_goal",
            CAMERA,
            r"must be the same, got \['libero_goal'\] and \['libero_spatial_plus_camera'\]$",
        ),
    ],
)
def test_other_suites_are_no_pairs(write: Callable[..., Run], first: str, second: str, words: str) -> None:
    ids = [task.task_id for task in plus_tasks("libero_spatial", "robot")] if "robot" in first else IDS
    with pytest.raises(NotComparable, match=words):
        compare(write("first", first, ids=ids[:20]), write("second", second, ids=ids[:20]), 2.0)


def test_a_task_that_plus_has_not_is_named(write: Callable[..., Run]) -> None:
    runs = write("base", CAMERA, ids=[99999]), write("new", CAMERA, ids=[99999])
    with pytest.raises(NotComparable, match=r"^libero_spatial_plus_camera has no task 99999$"):
        compare(*runs, 2.0)


def test_a_control_and_its_pair_have_one_key() -> None:
    key = EpisodeKey(CAMERA, 5, 0, 7)
    assert pair_key(EpisodeKey(f"{CAMERA}_control", 5, 0, 7)) == key == pair_key(key)


def side_by_side(write: Callable[..., Run]) -> Overview:
    lan, ids = "libero_spatial_lan", list(range(10))
    runs = [
        write("control", f"{CAMERA}_control", IDS[:7]),
        write("perturbed", CAMERA, IDS[:47]),
        write("lan", lan, [1], ids),
        write("other_control", f"{lan}_control", [], ids, checkpoint_sha256="e" * 64),
    ]
    return overview([Source(Path(f"run{i}"), run) for i, run in enumerate(runs)], 2.0)


def test_a_row_for_each_perturbed_run_with_its_own_control(write: Callable[..., Run]) -> None:
    result = side_by_side(write)
    [arms] = result.arms
    assert (arms.control, arms.perturbed, arms.suite) == (1, 2, CAMERA)
    [row] = rows(result)
    cells = dict(zip(COLUMNS, row, strict=True))
    assert (cells["#"], cells["pairs"], cells["lost"], cells["points"]) == ("1, 2", "376", "40", "-10.6")
    assert (cells["control"], cells["perturbed"]) == ("98.1%", "87.5%")
    at_one = [task for task in IDS if level_of(CAMERA, task) == 1]
    kept = [sum(task not in IDS[:n] for task in at_one) / len(at_one) for n in (7, 47)]
    assert cells["level 1"] == f"{kept[0]:.1%} -> {kept[1]:.1%}"
    assert "| 1, 2 |" in markdown(result, "Sweep")
    [plain] = json.loads(to_json(result.to_dict(), "overview"))["arms"]
    assert plain["comparison"]["levels"]["1"]["lost"] == sum(task in IDS[7:47] for task in at_one)
    html = page(result, "Arms", "command")
    assert "What perturbations cost" in html
    assert f"2 {CAMERA}: lost to the perturbation, run 1 succeeded (40)" in html
