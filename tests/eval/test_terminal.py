"""A run whose reader or terminal goes away, and one on a terminal that can do nothing."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.records.reader import read_run
from policies.files import ROOT

pytestmark = pytest.mark.sim

RUN = ("policy=oracle", "protocol=smoke", "protocol.episodes=3", "suite.max_steps=40", "tracking=none")


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "eval", *RUN, f"hydra.run.dir={folder}"]


def wait_for_an_episode(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", folder: Path) -> None:
    episodes = folder / "episodes.jsonl"
    while not (episodes.exists() and episodes.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)


def test_a_reader_of_stderr_that_goes_away_costs_no_episode_and_no_summary(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stdout is not None
    process.stderr.readline()
    process.stderr.close()
    out = process.stdout.read()
    assert process.wait(120) == 0
    assert f"records: {folder}" in out
    assert len(read_run(folder).episodes) == 3


def test_a_closed_terminal_ends_the_run_as_a_signal_does(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    ours, terminal = pty.openpty()
    with out.open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, *command(folder)],
            cwd=ROOT,
            stdin=terminal,
            stdout=stdout,
            stderr=terminal,
            start_new_session=True,
        )
    os.close(terminal)
    wait_for_an_episode(process, folder)
    os.close(ours)
    start_s = time.monotonic()
    assert process.wait(60) == 129
    assert time.monotonic() - start_s < 20
    assert f"records: {folder}" in out.read_text()
    assert read_run(folder).run["finished"] is False


# Makes the terminal that is stdin the controlling one, whose end is SIGHUP.
IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        command(tmp_path / "run"),
        cwd=ROOT,
        env={**os.environ, "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the run has ended, and its terminal with it
            break
    assert process.wait(60) == 0
    assert b"\x1b" not in shown
    assert shown.count(b"episodes ") == 4  # the announcement, and a line an episode
