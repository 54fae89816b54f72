"""Runs of the fakes that are killed with -9 at random moments after a finished episode, and resumed.

`python -m tests.eval.kill_soak 40 local` kills 40 times, over several runs, and exits with 1 unless each run
ends with the records of one that nobody killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from eval.records.reader import read_run
from policies.files import ROOT
from tests.eval.fake_run import CLOCKS, plan_of, results, run
from tests.eval.fakes import STEP_S

KILLS_A_RUN = 4
SLOW_STEP_S = 0.05  # and 5 steps an episode, on average
OPTIONS: dict[str, dict[str, Any]] = {"local": {}, "ray": {"workers": 2}}
CLOCK = {"local": "rtc", "ray": "free"}  # rtc: what a policy is asked depends on its last answer


def kill_and_resume(
    folder: Path, runner: str, kills: int, chance: random.Random
) -> tuple[int, dict[Any, Any]]:
    """Kill a run up to `kills` times, then let it end; return how often it was, and its results."""
    options = [runner, json.dumps(OPTIONS[runner]), CLOCK[runner]]
    command = [sys.executable, "-m", "tests.eval.fake_run", str(folder), *options]
    environ = {**os.environ, STEP_S: str(SLOW_STEP_S), "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(kills):
        before = _lines(folder)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and _lines(folder) == before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    ended = read_run(folder)
    assert ended.run["finished"] is True
    return killed, results(ended)


def soak(kills: int, runner: str, seed: int) -> tuple[int, int, int]:
    """Kill runs `kills` times in all; return the kills, the runs, and the runs whose records differ."""
    chance = random.Random(seed)
    runs = killed = different = 0
    with tempfile.TemporaryDirectory() as name:
        expected = results(run(Path(name, "unbroken"), plan_of(clock=CLOCKS[CLOCK[runner]])))
        while killed < kills:
            runs += 1
            ended, recorded = kill_and_resume(
                Path(name, str(runs)), runner, min(KILLS_A_RUN, kills - killed), chance
            )
            killed += ended
            different += recorded != expected
    return killed, runs, different


def _lines(folder: Path) -> int:
    path = folder / "episodes.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    killed, runs, different = soak(int(sys.argv[1]), sys.argv[2], time.time_ns())
    print(f"{killed} kills of {runs} runs, {different} differ from an unbroken run")  # noqa: T201
    sys.exit(different != 0)
