"""The runner's view of its processes: policies, workers, and a launcher of both."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import ray
import torch

from eval.config.schema import RunnerConfig
from eval.runners.ray.answers import Answer, FirstObservation
from eval.runners.ray.policy_server import MakePolicy, PolicyServer
from eval.runners.ray.worker import EpisodeWorker, Setup
from policies.base import EpisodeKey
from policies.files import search_current_folder_last

T = TypeVar("T")

GL_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "__EGL_VENDOR_LIBRARY_FILENAMES")
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")  # whose words are this machine's


@dataclass(eq=False)
class PolicyProcess:
    handle: Any
    built: Answer  # of `PolicyServer.build`
    launched_s: float = field(default_factory=time.monotonic)
    suspected_s: float | None = None  # when an episode that asked it took too long; None: it works


@dataclass(eq=False)
class WorkerProcess:
    """A worker, its episode, and the policy process that it asks."""

    number: int
    handle: Any
    started: Answer  # when its process is ready to simulate
    launched_s: float = field(default_factory=time.monotonic)
    policy: PolicyProcess | None = None
    key: EpisodeKey | None = None  # its episode; None while it is idle
    since_s: float = 0.0  # when its episode began
    overdue: bool = False  # killed because its episode took too long

    def begin(self, key: EpisodeKey, policy: PolicyProcess) -> None:
        self.key, self.policy, self.since_s, self.overdue = key, policy, time.monotonic(), False


class Launcher:
    """Starts processes, at the beginning and in place of lost ones.

    Attributes:
        first_observation: policies are built with it; set before the first is built.

    Args:
        make_policy: builds the policy, in a process of its own.
        setup: prepares a worker's process.
        gpu_share: of a GPU, for each policy process.
    """

    first_observation: FirstObservation

    def __init__(
        self, options: RunnerConfig, make_policy: MakePolicy, setup: Setup, gpu_share: float
    ) -> None:
        self._options = options
        folder = os.getcwd()
        self._make_policy = partial(_call_in, folder, make_policy)
        self._setup = partial(_call_in, folder, setup)
        self._gpu_share = gpu_share

    def start_policy_server(self) -> Any:
        """Start a policy process, whose policy is not built yet."""
        actor = ray.remote(num_cpus=1, num_gpus=self._gpu_share)(PolicyServer)
        return actor.remote(
            max_batch=self._options.max_batch,
            max_wait_ms=self._options.max_wait_ms,
            warmup_inferences=self._options.warmup_inferences,
            threads=torch.get_num_threads(),
        )

    def build_policy(self, handle: Any) -> PolicyProcess:
        """Let a policy process build its policy; do not wait for it."""
        return PolicyProcess(handle, handle.build.remote(self._make_policy, self.first_observation))

    def start_worker(self, number: int) -> WorkerProcess:
        """Start a worker's process; do not wait for it."""
        names = GL_VARIABLES if self._options.address else (*GL_VARIABLES, *GPU_VARIABLES)
        environ = {name: os.environ[name] for name in names if name in os.environ}
        handle: Any = ray.remote(num_cpus=1)(EpisodeWorker).remote(environ, self._setup)
        return WorkerProcess(number, handle, handle.simulator.remote())

    def restart(self, worker: WorkerProcess) -> None:
        """Give a worker another process; the lost one may be alive where nobody reaches it."""
        ray.kill(worker.handle, no_restart=True)
        fresh = self.start_worker(worker.number)
        worker.handle, worker.started, worker.overdue = fresh.handle, fresh.started, False
        worker.launched_s = fresh.launched_s


def _call_in(folder: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in the folder of the command, whose modules are found last."""
    with contextlib.suppress(FileNotFoundError):  # another node of a cluster may not have it
        os.chdir(folder)
    search_current_folder_last()
    return function(*arguments)
