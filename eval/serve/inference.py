"""The one thread that builds the policy and asks it: CUDA's current device belongs to a thread."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from eval.runners.device import is_device_lost
from policies.base import ActionChunk, Policy, Request
from policies.chunking import ActionQueue
from policies.remote.link import one_line

T = TypeVar("T")


class PolicyGone(RuntimeError):
    """The policy cannot answer any more: the GPU is lost, or the server ends."""


@dataclass(frozen=True)
class Timed:
    """A chunk, and the milliseconds that the policy took for it, without waiting for its turn."""

    chunk: ActionChunk
    infer_ms: float


class Inference:
    """Builds a policy in its thread and asks it there, one request after another, as they come."""

    policy: Policy

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._work: set[Future[Any]] = set()
        self._ended = False

    @property
    def is_idle(self) -> bool:
        return not self._work

    async def build(self, make_policy: Callable[[], Policy]) -> Policy:
        """Build the policy; raise what building it raised."""
        self.policy = await self._do(make_policy)
        return self.policy

    async def infer(self, request: Request) -> Timed:
        """Ask for one chunk.

        Raises:
            PolicyGone: the GPU is lost.
            ValueError: the policy's chunk is too short, of a wrong shape or not finite.
            Exception: whatever the policy raises for this request.
        """
        return await self._do(lambda: self._infer(request))

    def end(self) -> None:
        """Take no more work; what is being computed goes on."""
        self._ended = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            future = self._thread.submit(work)
        except RuntimeError as error:  # after the end, or where the system gives no thread
            raise PolicyGone(
                "the server ends" if self._ended else f"the policy cannot run: {error}"
            ) from error
        self._work.add(future)
        future.add_done_callback(self._work.discard)
        return await asyncio.wrap_future(future)

    def _infer(self, request: Request) -> Timed:
        start_s = time.perf_counter()
        try:
            [chunk] = self.policy.infer([request])
        except Exception as error:
            if is_device_lost(error):
                raise PolicyGone(f"the policy lost its GPU: {one_line(str(error))}") from error
            raise
        infer_ms = (time.perf_counter() - start_s) * 1e3 - chunk.setup_ms
        ActionQueue(self.policy.replan_steps).refill(chunk)  # holds the chunk to its promise
        return Timed(chunk, infer_ms)
