"""The processes of `runner=ray`: a policy that serves many episodes, and a worker that rolls one at a time.

Both are plain classes here; `eval.ray_runner` makes actors of them.
"""

import asyncio
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from eval.batching import Batching
from eval.engagement import Engagement
from eval.episode import EpisodeRoller, Outcome
from eval.libero_env import CAMERAS, LiberoEnv
from eval.plan import Plan
from eval.records import EpisodeRecord, InferenceRecord
from eval.resume import refuse_changed
from eval.rollout import CutOff, ServedChunk, Service
from eval.runner import RunnerError
from policies.base import ActionChunk, EpisodeKey, Observation, Policy, Request

MakePolicy = Callable[[Callable[[], Observation]], tuple[Policy, Batching]]
"""Builds a policy, given a way to see what the cameras see at the start of an episode."""
Setup = Callable[[], Mapping[str, Any]]
"""Makes a process ready to simulate and says with what (`sim_stack.prepare`)."""
BuildEnv = Callable[[], LiberoEnv]
Answer = Any  # a reference to what an actor returns, when it has

EXIT_DELAY_S = 0.5  # answers leave first
DIED = (RayActorError, OutOfMemoryError)  # the latter where Ray's memory monitor killed the process


def first_answers(answers: Sequence[Answer]) -> list[Any]:
    """Return the first answers of processes, or raise what one of them raised.

    Raises:
        RunnerError: a process died.
    """
    try:
        return list(ray.get(answers))
    except RayTaskError as error:
        raise error.cause from error
    except DIED as error:
        raise RunnerError(f"a process of the runner did not start: {exit_detail(error)}") from error


@dataclass(frozen=True)
class FirstLook:
    """What the first worker's cameras see at the start of an episode, when it has looked.

    Attributes:
        answers: of `EpisodeWorker.build`, in a list: handed over bare, Ray would wait for it.
        timeout_s: how long to wait, `runner.episode_timeout_s`.
    """

    answers: Sequence[Answer]
    timeout_s: float

    def __call__(self) -> Observation:
        """Wait for it.

        Raises:
            RunnerError: it takes too long, and see `first_answers`.
        """
        ready, _ = ray.wait(list(self.answers), timeout=self.timeout_s)
        if not ready:
            raise RunnerError(
                f"runner.episode_timeout_s={self.timeout_s:g} is over, and the first worker's environment "
                "is not built; raise it if that may take longer"
            )
        [observation] = first_answers(ready)
        assert isinstance(observation, Observation)
        return observation


@dataclass(frozen=True)
class PolicyFacts:
    """What a worker and the records must know of a policy.

    Attributes:
        batch_sizes, one_at_a_time: see `eval.batching.Batching`.
    """

    name: str
    cameras: tuple[str, ...]
    needs_privileged: bool
    replan_steps: int
    about: Mapping[str, Any]
    batch_sizes: tuple[int, ...] | None
    one_at_a_time: str | None


@dataclass(frozen=True)
class Result:
    """What a worker says of an episode that ended.

    Attributes:
        film: the video, where one is wanted; film_error: why there is none.
        served_by, engagement: of which process, and how the policy's stages have served there so far.
    """

    record: EpisodeRecord
    inferences: Sequence[InferenceRecord]
    first_frame_sha256: str | None
    film: bytes | None
    film_error: str | None
    served_by: str
    engagement: Engagement


@dataclass(frozen=True)
class _Waiting:
    request: Request
    under_load: bool
    answer: asyncio.Future[ServedChunk]


class PolicyHost:
    """A policy in a process of its own, asked by many workers at once.

    Non-obvious behaviors:
        * The policy is built and asked in one thread: CUDA's current device and torch's number of threads
          belong to a thread.
        * A batch that raises is served again one by one, so that an error stays with its episode.
        * When the GPU is lost, the process ends; the runner starts another.
        * Requests wait until the policy is built.

    Args:
        max_batch: requests that are served together at most; fewer where the policy's `Batching` says so.
        max_wait_ms: how long the first request of a batch waits for others.
        threads: of torch, as in the process that started the run: they enter the last bits on the CPU.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_wait_ms: float,
        warmup_inferences: int,
        threads: int,
    ) -> None:
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1e3
        self._threads = threads
        self._warmup_left = warmup_inferences
        self._id = uuid.uuid4().hex
        self._thread = ThreadPoolExecutor(1)
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._server: asyncio.Task[None] | None = None
        self._built = asyncio.Event()
        self._failure: Exception | None = None
        self._computing_since_s: float | None = None

    async def build(self, make_policy: MakePolicy, look: Callable[[], Observation]) -> PolicyFacts:
        """Build the policy and return what is to be known of it; raise what building it raised."""
        loop = asyncio.get_running_loop()
        try:
            self._policy, self._batching = await loop.run_in_executor(
                self._thread, _make, make_policy, look, self._threads
            )
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._built.set()
        policy, self._max_batch = self._policy, self._batching.most(self._max_batch)
        return PolicyFacts(
            policy.name,
            policy.cameras,
            policy.needs_privileged,
            policy.replan_steps,
            policy.provenance(),
            self._batching.sizes,
            self._batching.one_at_a_time,
        )

    async def report(self) -> tuple[str, Engagement]:
        """Return the name of this process and how the policy's stages have served in it."""
        await self._built.wait()
        return self._id, {} if self._failure else self._policy.engagement()

    async def infer(self, request: Request, under_load: bool) -> ServedChunk:
        """Return the chunk of one request.

        Raises:
            CutOff: the policy is lost.
        """
        await self._built.wait()
        if self._failure is not None:
            raise CutOff(f"the policy could not be built again: {self._failure}")
        waiting = _Waiting(request, under_load, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        if self._server is None:
            self._server = asyncio.create_task(self._serve())
        return await waiting.answer

    async def computing_s(self) -> float:
        """Return for how long the policy has been computing the batch that it computes."""
        return 0.0 if self._computing_since_s is None else time.monotonic() - self._computing_since_s

    async def _serve(self) -> None:
        while True:
            for batch in self._batching.split(await self._gather(), lambda waiting: waiting.request):
                await self._answer(batch)

    async def _gather(self) -> list[_Waiting]:
        """Return those who wait: as many as are served together, or who came until the first had waited."""
        gathered = [await self._queue.get()]
        deadline = time.monotonic() + self._max_wait_s
        while len(gathered) < self._max_batch:
            left_s = deadline - time.monotonic()
            try:
                gathered.append(await asyncio.wait_for(self._queue.get(), max(left_s, 0)))
            except TimeoutError:
                break
        return gathered

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        requests = [waiting.request for waiting in batch]
        loop = asyncio.get_running_loop()
        self._computing_since_s = time.monotonic()
        try:
            chunks, infer_ms = await loop.run_in_executor(self._thread, self._infer, requests)
        except Exception as error:  # noqa: BLE001  whatever a policy raises is the answer
            if is_device_lost(error):
                for waiting in batch:
                    waiting.answer.set_exception(CutOff(f"the policy lost its GPU: {error}"))
                loop.call_later(EXIT_DELAY_S, os._exit, 1)
            elif len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for waiting in batch:
                    await self._answer([waiting])
            return
        finally:
            self._computing_since_s = None
        warmup = self._warmup_left > 0
        self._warmup_left -= 1
        for waiting, chunk in zip(batch, chunks, strict=True):
            service = Service(infer_ms, warmup, len(batch), waiting.under_load)
            waiting.answer.set_result(ServedChunk(**vars(chunk), service=service))

    def _infer(self, requests: Sequence[Request]) -> tuple[list[ActionChunk], float]:
        start = time.perf_counter()
        chunks = self._policy.infer(requests)
        return chunks, (time.perf_counter() - start) * 1e3


def _make(make_policy: MakePolicy, look: Callable[[], Observation], threads: int) -> tuple[Policy, Batching]:
    import torch

    torch.set_num_threads(threads)
    return make_policy(look)


def is_device_lost(error: Exception) -> bool:
    """Return whether no later call on this GPU can succeed in this process: CUDA's errors stay."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


class RemotePolicy:
    """A policy as `eval.rollout.roll` sees it, asked in its own process.

    Attributes:
        host: that process; another one where it died.
    """

    def __init__(self, host: Any, facts: PolicyFacts) -> None:
        self.host = host
        self._about = facts.about
        self.name = facts.name
        self.cameras = facts.cameras
        self.needs_privileged = facts.needs_privileged
        self.replan_steps = facts.replan_steps
        self.under_load = False

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Return one chunk per request.

        Raises:
            CutOff: the policy's process died.
        """
        return self._ask([self.host.infer.remote(request, self.under_load) for request in requests])

    def report(self) -> tuple[str, Engagement]:
        """See `PolicyHost.report`; empty where the process died."""
        try:
            reported: tuple[str, Engagement] = self._ask(self.host.report.remote())
        except CutOff:
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
            raise CutOff(f"the policy's process died: {exit_detail(error)}") from error


@dataclass(frozen=True)
class Simulator:
    """What a worker on a machine called `host` simulates with: `about`, as `Setup` said."""

    host: str
    about: Mapping[str, Any]

    def refuse_unlike(self, first: Mapping[str, Any]) -> None:
        """Raise Changed where the first worker simulates with something else."""
        refuse_changed(f"a worker on {self.host}", {"simulator": first}, {"simulator": self.about})


class EpisodeWorker:
    """A process that rolls episodes one at a time, with an environment of its own.

    Args:
        environ: variables that choose the GL backend.
    """

    def __init__(self, environ: Mapping[str, str], setup: Setup) -> None:
        os.environ.update(environ)
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray's, for actors without a GPU; EGL needs one to draw
        self._roller: EpisodeRoller | None = None
        self._first_env: LiberoEnv | None = None
        self._failure: Exception | None = None
        try:
            self._simulator = Simulator(socket.gethostname(), setup())
        except Exception as error:  # noqa: BLE001  said when asked, as in PolicyHost
            self._failure = error

    def simulator(self) -> Simulator:
        """Return what `setup` said, or raise what it raised."""
        if self._failure is not None:
            raise self._failure
        return self._simulator

    def build(self, build_env: BuildEnv, look_at: EpisodeKey | None = None) -> Observation | None:
        """Build the environment of the first episode, which tries it again where this raised.

        Returns:
            what its cameras see at the start of `look_at`, where that is given.
        """
        self.simulator()
        env, seen = build_env(), None
        if look_at is not None:
            env.reset(look_at)
            seen = env.observe(tuple(CAMERAS), privileged=False)
        self._first_env = env
        return seen

    def roll(
        self,
        plan: Plan,
        host: Any,
        facts: PolicyFacts,
        key: EpisodeKey,
        under_load: bool,
        simulator: Mapping[str, Any],
    ) -> Result:
        """Roll one episode.

        Args:
            simulator: what the first worker simulates with.

        Raises:
            CutOff: the policy's process died; the episode has no outcome.
            SimStackError, Changed: this machine cannot simulate, or not as the first worker's does.
        """
        self.simulator().refuse_unlike(simulator)
        if self._roller is None:
            self._policy = RemotePolicy(host, facts)
            self._roller = EpisodeRoller(plan, self._policy, self._first_env)
            self._first_env = None  # the roller closes it
        self._policy.host, self._policy.under_load = host, under_load
        [task] = [task for task in plan.tasks if task.task_id == key.task_id]
        inferences: list[InferenceRecord] = []
        outcome = self._roller.run(task, key, inferences.append)
        film, film_error = self._film(self._roller, outcome)
        return Result(
            outcome.record,
            inferences,
            outcome.rollout.first_frame_sha256,
            film,
            film_error,
            *self._policy.report(),
        )

    def _film(self, roller: EpisodeRoller, outcome: Outcome) -> tuple[bytes | None, str | None]:
        """Return the video as a file's content: the records may be on another machine."""
        if not outcome.rollout.film or not roller.plan.video.keeps(outcome.record):
            return None, None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "episode.mp4")
            try:
                roller.film(outcome, path)
                return path.read_bytes(), None
            except Exception as error:  # noqa: BLE001  a video is no reason to lose the episode
                return None, f"{type(error).__name__}: {error}"


def exit_detail(error: RayError) -> str:
    """Return what Ray knows of why a process died, on one line."""
    if isinstance(error, OutOfMemoryError):
        return str(error).partition("\n")[0]  # a page on the machine's memory follows
    text = " ".join(str(error).split())
    _, found, detail = text.partition("Worker exit type: ")
    return detail if found else text
