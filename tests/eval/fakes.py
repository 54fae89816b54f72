"""A simulator and a policy of arithmetic, whose episodes depend on their key and actions alone; and faults.

A file in the folder that the variable `FAKE_FAULTS` names makes one episode go wrong:
`<fault>-<task>-<episode>` once, `always-<fault>-<task>-<episode>` in each attempt.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.sim.tasks import Task
from eval.specs.base import BuiltPolicy
from policies.base import ActionChunk, EpisodeKey, Observation, Request
from policies.seeding import action_noise

SIMULATOR = {"gl": "none"}
FAULTS = "FAKE_FAULTS"
STEP_S = "FAKE_STEP_S"  # how long a control step takes


def tasks(count: int) -> list[Task]:
    """The first tasks of a suite that no simulator has."""
    return [Task("libero_spatial", i, f"task {i}", "", np.zeros((50, 1))) for i in range(count)]


def use_fakes() -> dict[str, Any]:
    """What a worker's setup says."""
    return SIMULATOR


def make_policy(observe_first: Callable[[], Observation]) -> BuiltPolicy:
    return BuiltPolicy(ArithmeticPolicy())


def no_observation() -> Observation:
    """A first observation for policies that must not need one."""
    raise AssertionError("nobody asked for an observation")


def happens(fault: str, key: EpisodeKey) -> bool:
    """Whether a fault is due in this episode."""
    folder = os.environ.get(FAULTS)
    if folder is None:
        return False
    name = f"{fault}-{key.task_id}-{key.episode}"
    if Path(folder, f"always-{name}").exists():
        return True
    try:
        Path(folder, name).unlink()
    except FileNotFoundError:
        return False
    return True


def deadlock(libc: ctypes.CDLL) -> None:
    """Never return, whatever signals come; `PyDLL` keeps the interpreter's lock meanwhile."""
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


class ArithmeticEnv:
    """Its state is a number that actions move; it succeeds when that has a certain fraction."""

    def __init__(self, task: Task, *, seeding: str = "paired", render: bool = True) -> None:
        self.task = task

    def reset(self, key: EpisodeKey) -> None:
        self.key = key
        self.state = float(action_noise(key, 10**6, 1, 1)[0, 0])
        self.steps = 0

    def step(self, action: NDArray[np.float64]) -> bool:
        time.sleep(float(os.environ.get(STEP_S, "0")))
        self.steps += 1
        if self.steps == 3:
            if happens("kill", self.key):
                os.kill(os.getpid(), signal.SIGKILL)
            if happens("segfault", self.key):
                os.kill(os.getpid(), signal.SIGSEGV)
            if happens("hang", self.key):
                time.sleep(1000)
            if happens("raise", self.key):
                raise RuntimeError("the renderer gave up")
        self.state = float(np.tanh(self.state + action.sum()) + 0.1 * self.state)
        return abs(self.state * 1e3) % 1 < 0.05

    def observe(self, cameras: Sequence[str], *, privileged: bool) -> Observation:
        images = {name: np.full((4, 4, 3), int(abs(self.state) * 100) % 256, np.uint8) for name in cameras}
        return Observation(images, np.full(8, self.state), self.task.language)

    @property
    def snapshot(self) -> float:
        return self.state

    def state_vector(self) -> NDArray[np.float64]:
        return np.array([self.state])

    def fixture_poses(self) -> NDArray[np.float64]:
        return np.zeros(1)

    def close(self) -> None:
        pass


class ArithmeticPolicy:
    """Noise of the key and the call, moved by what it sees; it computes each row by itself."""

    name = "arithmetic"
    cameras: tuple[str, ...] = ("agentview_image",)
    needs_privileged = False
    replan_steps = 3

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        self.calls += 1
        return [self._row(request) for request in requests]

    def _row(self, request: Request) -> ActionChunk:
        if happens("policy-kill", request.episode):
            os.kill(os.getpid(), signal.SIGKILL)
        if happens("policy-hang", request.episode):
            time.sleep(1000)
        if happens("policy-deadlock", request.episode):
            deadlock(ctypes.CDLL(None))
        if happens("policy-deadlock-gil", request.episode):
            deadlock(ctypes.PyDLL(None))
        if happens("gpu", request.episode):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if happens("policy-raise", request.episode):
            raise FloatingPointError("actions are not finite")
        noise_HJ = action_noise(request.episode, request.call, 4, 7).astype(np.float64)
        actions_HJ = np.tanh(noise_HJ + request.observation.state[0])
        if (guidance := request.guidance) is not None:
            actions_HJ += 0.5 * guidance.weights_H[:, None] * (guidance.old_HA - actions_HJ)
        return ActionChunk(actions_HJ, {"vision": 1.0}, {"vision": "eager"}, actions_HJ.astype(np.float32))

    def provenance(self) -> dict[str, Any]:
        return {"checkpoint": "arithmetic", "weights_sha256": "0" * 64}

    def engagement(self) -> Mapping[str, Any]:
        return {"vision": {"backend": "eager", "calls": self.calls, "misses": 0, "refused": 0}}
