"""A job that is interrupted keeps what it recorded, however the shell started the command."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policies.files import ROOT

# As a command does: SIGTERM interrupts it. A shell that starts a process with `&` lets it ignore SIGINT.
COMMAND = """
import signal, sys
from pathlib import Path
from eval.jobs.run import run_process
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    run_process(sys.argv[2:], Path(sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.sim
def test_a_job_of_a_background_process_ends_when_interrupted_and_keeps_its_records(tmp_path: Path) -> None:
    log, run = tmp_path / "job.log", tmp_path / "run"
    job = ["policy=oracle", "protocol=official", "suite.max_steps=5", "tracking=none", f"hydra.run.dir={run}"]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(log), *job], cwd=ROOT)
    try:
        deadline_s = time.monotonic() + 120
        while not ((run / "episodes.jsonl").exists() and (run / "episodes.jsonl").stat().st_size):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(50) == 130  # before PATIENCE_S is over
    finally:
        process.kill()
    assert "interrupted; what was recorded is kept" in log.read_text()
    assert "go on with it: python -m eval resume=" in log.read_text()
