"""An episode that hangs ends, in Python and in compiled code, and costs the others nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.records.reader import read_run
from policies.files import ROOT
from tests.eval.fake_run import results, run
from tests.eval.fakes import FAULTS

LIMIT_S = 2.0
WATCHED = """
import sys
from pathlib import Path
from eval.app.heir import heir_command
from eval.episodes.signals import noticed
from eval.runners.watch import Watch
from tests.eval.fake_run import plan_of, run
folder = Path(sys.argv[1])
watch = Watch(float(sys.argv[2]), heir_command(folder, "python -m eval resume=it"))
with noticed():
    run(folder, plan_of(max_errors=3), watch=watch)
"""


def start(folder: Path, faults: Path, *names: str, limit_s: float = LIMIT_S) -> subprocess.Popen[str]:
    faults.mkdir()
    for name in names:
        (faults / name).touch()
    return subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(folder), str(limit_s)],
        cwd=ROOT,
        env={**os.environ, FAULTS: str(faults)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_an_episode_that_hangs_in_python_is_an_error_and_the_others_are_as_ever(tmp_path: Path) -> None:
    process = start(tmp_path / "run", tmp_path / "faults", "hang-0-1", "policy-hang-2-0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    recorded = read_run(tmp_path / "run")
    errors = [episode for episode in recorded.episodes if episode.success is None]
    assert [(error.task_id, error.episode, error.error_type) for error in errors] == [
        (0, 1, "EpisodeTimeout"),
        (2, 0, "EpisodeTimeout"),
    ]
    assert {error.error_message for error in errors} == {"runner.episode_timeout_s=2 is over"}
    assert all(LIMIT_S <= error.wall_s < 10 * LIMIT_S for error in errors)
    expected = results(run(tmp_path / "unwatched"))
    finished = {episode.key for episode in recorded.episodes} - {error.key for error in errors}
    assert {key: results(recorded)[key] for key in finished} == {key: expected[key] for key in finished}


@pytest.mark.parametrize("fault", ["policy-deadlock", "policy-deadlock-gil"])
def test_compiled_code_that_does_not_return_ends_with_a_record_a_summary_and_the_way_on(
    tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "run"
    process = start(folder, tmp_path / "faults", f"{fault}-1-2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    over = "runner.episode_timeout_s=2 is over, and compiled code does not return: the run was ended"
    assert err.splitlines()[-2:] == [f"error: {over}", "go on with it: python -m eval resume=it"]
    assert f"records: {folder}" in out
    recorded = read_run(folder)
    last = recorded.episodes[-1]
    assert (last.task_id, last.episode, last.error_type) == (1, 2, "EpisodeTimeout")
    assert len(recorded.episodes) == 7
    assert recorded.run["finished"] is False
    assert results(run(folder)) == results(run(tmp_path / "unwatched"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_compiled_code_keeps_back_ends_the_run_too(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    process = start(folder, tmp_path / "faults", "policy-deadlock-gil-0-1", limit_s=1000)
    episodes = folder / "episodes.jsonl"
    while not (episodes.exists() and episodes.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert err.splitlines()[-2:] == [
        "error: a signal came, and compiled code does not return: the run was ended",
        "go on with it: python -m eval resume=it",
    ]
    assert f"records: {folder}" in out
    assert len(read_run(folder).episodes) == 1


def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    process = start(tmp_path / "run", tmp_path / "faults", "hang-0-1", limit_s=1000)
    episodes = tmp_path / "run" / "episodes.jsonl"
    while not (episodes.exists() and episodes.stat().st_size):
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=30)  # returns when nobody holds the pipes any more
