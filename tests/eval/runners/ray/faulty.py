"""What goes wrong in the tests of the Ray runner."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.specs.base import BuiltPolicy
from policies.base import EpisodeKey, Observation, Request
from tests.eval.fakes import ArithmeticPolicy

PROCESS_DIED = r"the policy's process died: SYSTEM_ERROR"


def kill_this_process(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_at_once(*_: Any, **__: Any) -> None:
    raise RuntimeError("the renderer gave up")


def wait_for(path: Path) -> None:
    """Return when another process has made this file."""
    while not path.exists():
        time.sleep(0.02)


@dataclass(frozen=True)
class Builds:
    """Makes a policy, and another one from the second process on; `count` says in how many processes."""

    folder: Path
    first: Callable[[], ArithmeticPolicy]
    later: Callable[[], ArithmeticPolicy] = ArithmeticPolicy

    def __call__(self, observe_first: Callable[[], Observation]) -> BuiltPolicy:
        make = self.later if self.count else self.first
        (self.folder / f"policy-{os.getpid()}").touch()
        return BuiltPolicy(make())

    @property
    def count(self) -> int:
        return len(list(self.folder.glob("policy-*")))


def request(task: int, episode: int = 0) -> Request:
    observation = Observation({}, np.full(8, 0.5), f"task {task}")
    return Request(observation, EpisodeKey("libero_spatial", task, episode, 7), 0)
