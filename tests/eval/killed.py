"""A run in another process that ends with -9 at a random moment."""

import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from policies.files import ROOT


def kill_at_a_random_moment(command: Sequence[str], folder: Path, chance: random.Random) -> int:
    """Run a command that records in `folder`, end it within half a second of its first records, and return
    its exit status."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = _size(folder)
    while process.poll() is None and _size(folder) == before:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    return process.wait()


def _size(folder: Path) -> int:
    path = folder / "inferences.jsonl"
    return path.stat().st_size if path.exists() else 0
