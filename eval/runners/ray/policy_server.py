"""The policy process of `runner=ray`: one policy that serves many episodes."""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eval.episodes.rollout import PolicyLost, ServedChunk, Service
from eval.records.engagement import Engagement
from eval.runners.device import is_device_lost
from eval.specs.base import BuiltPolicy
from policies.base import ActionChunk, Observation, Request

MakePolicy = Callable[[Callable[[], Observation]], BuiltPolicy]
"""Builds a policy, given a function that observes the start of an episode."""


EXIT_DELAY_S = 0.5  # answers leave first


@dataclass(frozen=True)
class PolicyFacts:
    """What workers and records need to know of a policy; the last two fields are those of `Batching`."""

    name: str
    cameras: tuple[str, ...]
    needs_privileged: bool
    replan_steps: int
    about: Mapping[str, Any]
    batch_sizes: tuple[int, ...] | None
    one_at_a_time: str | None


@dataclass(frozen=True)
class _Waiting:
    request: Request
    under_load: bool
    answer: asyncio.Future[ServedChunk]


class PolicyServer:
    """A policy in a process of its own, which many workers ask at once.

    Non-obvious behaviors:
        * The policy is built and asked in one thread: CUDA's current device and torch's number of threads
          belong to a thread.
        * A batch that raises is served again one by one, so that an error stays with its episode.
        * When the GPU is lost, the process ends; the runner starts another.
        * Requests wait until the policy is built.

    Args:
        max_batch: requests that are served together at most; fewer where the policy's `Batching` says so.
        max_wait_ms: how long the first request of a batch waits for others.
        threads: torch's, as in the process that started the run: they affect the last bits on the CPU.
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

    async def build(self, make_policy: MakePolicy, observe_first: Callable[[], Observation]) -> PolicyFacts:
        """Build the policy and describe it; raise what building it raised."""
        loop = asyncio.get_running_loop()
        try:
            built = await loop.run_in_executor(self._thread, _make, make_policy, observe_first, self._threads)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._built.set()
        policy = self._policy = built.policy
        self._batching = built.batching
        self._max_batch = self._batching.most(self._max_batch)
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
        """Name this process, and count how the policy's stages have served in it."""
        await self._built.wait()
        return self._id, {} if self._failure else self._policy.engagement()

    async def infer(self, request: Request, under_load: bool) -> ServedChunk:
        """Queue one request and wait for its chunk; PolicyLost where the policy is lost."""
        await self._built.wait()
        if self._failure is not None:
            raise PolicyLost(f"the policy could not be built again: {self._failure}")
        waiting = _Waiting(request, under_load, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        if self._server is None:
            self._server = asyncio.create_task(self._serve())
        return await waiting.answer

    async def computing_s(self) -> float:
        """Seconds since the current batch began to compute; 0 when there is none."""
        return 0.0 if self._computing_since_s is None else time.monotonic() - self._computing_since_s

    async def _serve(self) -> None:
        while True:
            for batch in self._batching.split(await self._gather(), lambda waiting: waiting.request):
                await self._answer(batch)

    async def _gather(self) -> list[_Waiting]:
        """Take a batch from the queue: a full one, or what came while its first request could wait."""
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
                    waiting.answer.set_exception(PolicyLost(f"the policy lost its GPU: {error}"))
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
        infer_ms = (time.perf_counter() - start) * 1e3
        return chunks, infer_ms - sum(chunk.setup_ms for chunk in chunks)


def _make(make_policy: MakePolicy, observe_first: Callable[[], Observation], threads: int) -> BuiltPolicy:
    import torch

    torch.set_num_threads(threads)
    return make_policy(observe_first)
