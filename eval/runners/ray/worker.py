"""The worker of `runner=ray`: it runs one episode at a time and asks a policy in another process.

The classes are plain; `eval.runners.ray.processes` makes actors of them.
"""

import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from eval.episodes.plan import Plan
from eval.episodes.rollout import PolicyLost
from eval.episodes.runner import EpisodeResult, EpisodeRunner
from eval.records.engagement import Engagement
from eval.records.resume import refuse_changed
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.runners.ray.answers import DIED, exit_detail
from eval.runners.ray.policy_server import (
    PolicyFacts,
)
from eval.sim.env import CAMERAS, LiberoEnv
from policies.base import ActionChunk, EpisodeKey, Observation, Request

Setup = Callable[[], Mapping[str, Any]]
"""Makes a process ready to simulate and describes the simulator (`eval.sim.stack.prepare`)."""
BuildEnv = Callable[[], LiberoEnv]


@dataclass(frozen=True)
class Result:
    """An ended episode, as its worker reports it.

    Attributes:
        video: a file's content, where one is wanted; video_error: why there is none.
        served_by, engagement: the policy's process, and how its stages have served there so far.
    """

    record: EpisodeRecord
    inferences: Sequence[InferenceRecord]
    first_frame_sha256: str | None
    video: bytes | None
    video_error: str | None
    served_by: str
    engagement: Engagement


class RemotePolicy:
    """A policy for `run_episode` that asks another process, `host`; PolicyLost where that died."""

    def __init__(self, host: Any, facts: PolicyFacts) -> None:
        self.host = host
        self._about = facts.about
        self.name = facts.name
        self.cameras = facts.cameras
        self.needs_privileged = facts.needs_privileged
        self.replan_steps = facts.replan_steps
        self.under_load = False

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        return self._ask([self.host.infer.remote(request, self.under_load) for request in requests])

    def report(self) -> tuple[str, Engagement]:
        """See `PolicyServer.report`; empty where the process died."""
        try:
            reported: tuple[str, Engagement] = self._ask(self.host.report.remote())
        except PolicyLost:
            return "", {}
        return reported

    def provenance(self) -> dict[str, Any]:
        return dict(self._about)

    def engagement(self) -> Engagement:
        return self.report()[1]

    def _ask(self, answers: Any) -> Any:
        try:
            return ray.get(answers)
        except RayTaskError as error:
            raise error.cause from error
        except DIED as error:
            raise PolicyLost(f"the policy's process died: {exit_detail(error)}") from error


@dataclass(frozen=True)
class Simulator:
    """The simulator of a worker on the machine `host`; `about` is what `Setup` returned."""

    host: str
    about: Mapping[str, Any]

    def refuse_unlike(self, first: Mapping[str, Any]) -> None:
        """Raise Changed where the first worker's simulator differs."""
        refuse_changed(f"a worker on {self.host}", {"simulator": first}, {"simulator": self.about})


class EpisodeWorker:
    """A process that runs episodes one at a time, in an environment of its own; `environ` chooses GL."""

    def __init__(self, environ: Mapping[str, str], setup: Setup) -> None:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray's, for actors without a GPU; EGL needs one to draw
        os.environ.update(environ)
        self._episode_runner: EpisodeRunner | None = None
        self._first_env: LiberoEnv | None = None
        self._failure: Exception | None = None
        try:
            self._simulator = Simulator(socket.gethostname(), setup())
        except Exception as error:  # noqa: BLE001  `simulator` raises it
            self._failure = error

    def simulator(self) -> Simulator:
        """Describe the simulator, or raise what `setup` raised."""
        if self._failure is not None:
            raise self._failure
        return self._simulator

    def build(self, build_env: BuildEnv, observe_at: EpisodeKey | None = None) -> Observation | None:
        """Build the environment of the first episode; if this raises, that episode tries again.

        Returns what its cameras see at the start of `observe_at`, where that is given.
        """
        self.simulator()
        env, seen = build_env(), None
        if observe_at is not None:
            env.reset(observe_at)
            seen = env.observe(tuple(CAMERAS), privileged=False)
        self._first_env = env
        return seen

    def run_episode(
        self,
        plan: Plan,
        host: Any,
        facts: PolicyFacts,
        key: EpisodeKey,
        under_load: bool,
        simulator: Mapping[str, Any],
    ) -> Result:
        """Run one episode.

        Args:
            simulator: the first worker's.

        Raises:
            PolicyLost: the policy's process died; the episode has no result.
            SimulatorError, Changed: this machine cannot simulate, or not as the first worker's does.
        """
        self.simulator().refuse_unlike(simulator)
        if self._episode_runner is None:
            self._policy = RemotePolicy(host, facts)
            self._episode_runner = EpisodeRunner(plan, self._policy, self._first_env)
            self._first_env = None  # the episode runner closes it
        self._policy.host, self._policy.under_load = host, under_load
        inferences: list[InferenceRecord] = []
        result = self._episode_runner.run(plan.task(key), key, inferences.append)
        video, video_error = self._video(self._episode_runner, result)
        return Result(
            result.record,
            inferences,
            result.rollout.first_frame_sha256,
            video,
            video_error,
            *self._policy.report(),
        )

    def _video(self, episode_runner: EpisodeRunner, result: EpisodeResult) -> tuple[bytes | None, str | None]:
        """The video as a file's content: the records may be on another machine."""
        if not result.rollout.snapshots or not episode_runner.plan.video.keeps(result.record):
            return None, None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "episode.mp4")
            try:
                episode_runner.save_video(result, path)
                return path.read_bytes(), None
            except Exception as error:  # noqa: BLE001  a video is no reason to lose the episode
                return None, f"{type(error).__name__}: {error}"
