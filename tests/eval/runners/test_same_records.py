"""The reference checkpoint on a CPU, in short episodes of real simulators: the same records however they were
run."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eval.merge import main as merge
from eval.records.reader import read_run
from tests.eval.fake_run import results
from tests.eval.killed import ROOT, kill_at_a_random_moment

pytestmark = pytest.mark.sim

SHORT = ("tracking=none", "policy.device=cpu", "policy.precision=float32", "suite.max_steps=12")
EPISODES = ("protocol.episodes=2", "protocol.first_episode=3")
RAY = ("runner=ray", "runner.workers=2")


def command(folder: Path, *arguments: str, tasks: str = "0,4") -> list[str]:
    """The command of a run in `folder`: three inferences an episode, float32."""
    chosen = [*SHORT, *EPISODES, f"suite.tasks=[{tasks}]", f"hydra.run.dir={folder}", *arguments]
    return [sys.executable, "-m", "eval", *chosen]


def evaluate(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What one process records, one episode after another."""
    folder = tmp_path_factory.mktemp("runs") / "local"
    evaluate(command(folder))
    recorded = results(read_run(folder))
    assert len(recorded) == len({actions for _, _, _, actions, _ in recorded.values()}) == 4
    return recorded


@pytest.mark.parametrize(
    ("workers", "tasks"), [(2, "0,4"), (4, "0,4"), (2, "4,0")], ids=["two", "four", "shuffled"]
)
def test_ray_records_what_one_process_records(
    tmp_path: Path, expected: dict[Any, Any], workers: int, tasks: str
) -> None:
    evaluate(command(tmp_path / "run", "runner=ray", f"runner.workers={workers}", tasks=tasks))
    assert results(read_run(tmp_path / "run")) == expected


def test_two_merged_shards_are_the_whole(tmp_path: Path, expected: dict[Any, Any]) -> None:
    evaluate(command(tmp_path / "a", "shard=1/2"))
    evaluate(command(tmp_path / "b", "shard=2/2", *RAY))
    assert merge([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "whole")]) == 0
    assert results(read_run(tmp_path / "whole")) == expected


def test_a_run_that_is_killed_and_resumed_three_times_is_the_whole(
    tmp_path: Path, expected: dict[Any, Any]
) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")  # noqa: T201  to repeat a failure
    chance = random.Random(seed)
    folder = tmp_path / "run"
    resume = [sys.executable, "-m", "eval", f"resume={folder}"]
    ends = [
        kill_at_a_random_moment(command(folder), folder, chance),
        kill_at_a_random_moment([*resume, *RAY], folder, chance),
        kill_at_a_random_moment([*resume, "runner=local"], folder, chance),
    ]
    assert ends[0] == -9
    evaluate([*resume, *RAY])
    resumed = read_run(folder)
    assert results(resumed) == expected
    assert resumed.run["finished"] is True
