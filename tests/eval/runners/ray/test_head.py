"""A run whose Ray head died ends soon, with what was recorded."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from eval.records.reader import read_run
from policies.files import ROOT
from tests.eval.fake_run import results, run
from tests.eval.fakes import STEP_S


def test_a_run_whose_head_died_says_so_and_keeps_its_records(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.eval.fake_run", str(folder), "ray", '{"workers": 1}'],
        cwd=ROOT,
        env={**os.environ, STEP_S: "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    episodes = folder / "episodes.jsonl"
    while not (episodes.exists() and episodes.stat().st_size):
        assert process.poll() is None
        time.sleep(0.1)
    [head] = [child for child in psutil.Process(process.pid).children() if "gcs_server" in child.name()]
    head.kill()
    start_s = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - start_s < 50  # Ray's own end comes after 60 s
    assert process.returncode == 1
    assert "RunFailed: Ray's head at " in err
    recorded = read_run(folder)
    assert recorded.run["finished"] is False
    expected = results(run(tmp_path / "local"))
    assert {key: expected[key] for key in results(recorded)} == results(recorded)


def test_a_folder_too_long_for_sockets_names_the_way_out(tmp_path: Path) -> None:
    place = tmp_path / ("a" * 120)
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.eval.fake_run", str(tmp_path / "run"), "ray", '{"workers": 1}'],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "set RAY_TMPDIR to a folder with a shorter path, such as /tmp" in done.stderr.splitlines()[-1]
