"""One episode: observe, infer, act, until the goal holds or the steps are spent."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eval.episodes.clock import FREE, Clock, Playback, Statistics
from eval.episodes.signals import raise_pending
from eval.records.schema import InferenceRecord
from eval.sim.env import LiberoEnv, Snapshot
from policies.base import ActionChunk, EpisodeKey, Policy, Request
from policies.chunking import checked


class PolicyLost(RuntimeError):
    """The policy's process died: the episode ended without an outcome."""


@dataclass(frozen=True)
class Service:
    """How an inference was served; the fields are those of `eval.records.schema.InferenceRecord`."""

    infer_ms: float
    warmup: bool
    batch: int = 1
    under_load: bool = False


@dataclass(frozen=True)
class ServedChunk(ActionChunk):
    """A chunk of a policy in another process, timed there: transport is not the policy's latency."""

    service: Service = field(kw_only=True)


@dataclass
class Rollout:
    """An episode so far; it is complete when `success` is no longer None."""

    success: bool | None = None
    steps: int = 0
    inferences: int = 0
    actions: list[NDArray[np.float64]] = field(default_factory=list)
    initial_state_sha256: str | None = None
    first_frame_sha256: str | None = None
    snapshots: list[Snapshot] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def actions_sha256(self) -> str:
        """Of the executed actions, float64."""
        return sha256(*self.actions)


def sha256(*arrays: NDArray[np.generic]) -> str:
    """Hash the arrays' bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _ask(policy: Policy, request: Request, warmup: bool) -> tuple[ActionChunk, Service]:
    start = time.perf_counter()
    [chunk] = policy.infer([request])
    own = Service((time.perf_counter() - start) * 1e3 - chunk.setup_ms, warmup)
    return chunk, chunk.service if isinstance(chunk, ServedChunk) else own


def run_episode(
    env: LiberoEnv,
    policy: Policy,
    key: EpisodeKey,
    max_steps: int,
    rollout: Rollout,
    on_inference: Callable[[InferenceRecord], None],
    *,
    warmup_inferences: int = 0,
    snapshot_every: int = 0,
    clock: Clock = FREE,
) -> None:
    """Run one episode, writing into `rollout` as it goes, so that an exception loses nothing.

    Args:
        warmup_inferences: so many of this episode's first inferences are marked as warm-up; a `ServedChunk`
            carries its own mark.
        snapshot_every: keep a snapshot of every n-th control step; 0 keeps none.
        clock: says what an inference costs; one that charges what it took charges nothing for a warm-up.
    """
    env.reset(key)
    rollout.initial_state_sha256 = sha256(env.state_vector(), env.fixture_poses())
    playback = Playback(clock, policy.replan_steps)
    rollout.statistics = playback.statistics
    pair = env.task.noise_key(key)
    while rollout.steps < max_steps and not rollout.success:
        raise_pending()
        if snapshot_every and rollout.steps % snapshot_every == 0:
            rollout.snapshots.append(env.snapshot)
        if not playback:
            observation = env.observe(policy.cameras, privileged=policy.needs_privileged)
            if rollout.first_frame_sha256 is None and policy.cameras:
                rollout.first_frame_sha256 = sha256(*(observation.images[name] for name in policy.cameras))
            warmup = rollout.inferences < warmup_inferences
            guidance = None
            if clock.guide is not None:  # its latency is known before the inference
                guidance = playback.guidance(clock.latency(key, rollout.inferences, math.nan))
            request = Request(observation, pair, rollout.inferences, guidance)
            chunk, service = _ask(policy, request, warmup)
            own_ms = 0.0 if service.warmup else service.infer_ms  # what a first call takes, later ones do not
            charged_ms = clock.latency(key, rollout.inferences, own_ms) if clock.charges else None
            record = InferenceRecord(
                suite=key.suite,
                task_id=key.task_id,
                episode=key.episode,
                seed=key.seed,
                call=rollout.inferences,
                stage_ms=chunk.stage_ms,
                backends=chunk.backends,
                charged_ms=charged_ms,
                **vars(service),
            )
            on_inference(record)
            rollout.inferences += 1
            actions_HJ = checked(chunk, policy.replan_steps)
            playback.refill(actions_HJ, charged_ms or 0.0, chunk.normalised_HA)
        action = playback.pop()
        rollout.actions.append(action)
        rollout.success = env.step(action)
        rollout.steps += 1
