"""A job that is interrupted keeps what it recorded, however the shell started the command."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.app.jobs.run import free_changes, run_jobs
from eval.config.compose import configure
from eval.config.schema import Config
from eval.records.sweep import JobRecord
from policies.files import ROOT
from policies.text import shell_override
from tests.eval.sweep.sweeps import recorded_config
from tests.eval.written_runs import write_run

# As a command does: SIGTERM interrupts it. A shell that starts a process with `&` lets it ignore SIGINT.
COMMAND = """
import signal, sys
from pathlib import Path
from eval.app.jobs.run import run_process
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    run_process(sys.argv[2:], Path(sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(130)
"""


BEGUN = ["policy=baseline", "tracking=none", "runner=ray", "runner.workers=8", "runner.max_errors=5"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was interrupted."""
    begun = {"finished": False, "config": recorded_config(BEGUN), "overrides": BEGUN}
    return write_run(tmp_path / "run", count=3, run=begun)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (BEGUN, []),
        (
            ["policy=baseline", "tracking=none"],
            ["runner.name='local'", "runner.max_errors=3", "runner.episode_timeout_s=3600.0"],
        ),
        ([*BEGUN, "runner.workers=2", "runner.address='a,b'"], ["runner.workers=2", "runner.address='a,b'"]),
        ([*BEGUN, "video=failures"], ["video='failures'"]),
        ([*BEGUN, "checkpoint.suites=[libero_10,'a b']"], ["checkpoint.suites=['libero_10','a b']"]),
        (
            [*BEGUN[:1], *BEGUN[2:], "tracking.tags=[x]", "tracking.project=mine"],
            ["tracking.name='wandb'", "tracking.project='mine'", "tracking.tags=['x']"],
        ),
    ],
)
def test_a_resumed_job_is_told_what_changed_of_its_runner_and_tracker(
    run: Path, overrides: list[str], changes: list[str]
) -> None:
    config = configure(overrides)
    assert free_changes(run, config) == changes
    resumed = configure([*BEGUN, *changes])
    assert as_run(resumed) == as_run(config)


def as_run(config: Config) -> tuple[object, ...]:
    """What a run reads of its free keys."""
    runner = config.runner if config.runner.name == "ray" else (config.runner.name, config.runner.max_errors)
    tracking = config.tracking if config.tracking.name == "wandb" else config.tracking.name
    return runner, tracking, config.video, config.record_observations, config.checkpoint.suites


def test_a_job_is_resumed_with_its_changes(run: Path) -> None:
    seen: list[list[str]] = []

    def run_job(arguments: list[str], log: Path) -> int:
        seen.append(arguments)
        return 0

    overrides = ("policy=baseline", "tracking=none", "runner=ray", "runner.workers=2")
    run_jobs(run.parent, [JobRecord("run", "run", overrides)], run_job, {})
    assert seen == [[f"resume='{run}'", "runner.max_errors=3", "runner.workers=2"]]


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
    assert f"-m eval {shell_override('resume', str(run))}" in log.read_text()
