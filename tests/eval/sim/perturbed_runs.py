"""Runs of a camera, a robot and a noise task with a policy of pixels, through the real runners."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.config.schema import RunnerConfig
from eval.episodes.plan import Plan
from eval.episodes.rollout import sha256
from eval.records.episodes import Episodes, Shard
from eval.records.reader import Run, read_run
from eval.records.writer import RunWriter
from eval.runners.local import LocalRunner
from eval.runners.ray.start import launch
from eval.runners.recorder import RunRecorder
from eval.sim.benchmark import prepare_suite
from eval.sim.camera import View
from eval.sim.env import LiberoEnv
from eval.sim.plus import Perturbation
from eval.sim.tasks import Task, load_tasks
from eval.specs.base import BuiltPolicy
from eval.tracking.base import NullTracker, SafeTracker
from policies.base import ActionChunk, Observation, Request
from policies.seeding import action_noise
from tests.eval.fake_run import PROVENANCE, plan_of
from tests.eval.fakes import ArithmeticPolicy

SUITE = "libero_spatial_plus_camera"
PERTURBATIONS = (Perturbation(View(40, 15)), Perturbation(pose=401), Perturbation(noise=43))


class PixelPolicy(ArithmeticPolicy):
    """Acts on every byte of what it sees."""

    replan_steps = 2

    def _row(self, request: Request) -> ActionChunk:
        seen = request.observation
        moved = int(sha256(*seen.images.values(), seen.state)[:6], 16) / 2**24
        noise_HJ = action_noise(request.episode, request.call, 2, 7).astype(np.float64)
        return ActionChunk(np.tanh(noise_HJ + moved), {"vision": 1.0}, {"vision": "eager"})


def perturbed_tasks() -> list[Task]:
    """One task of each dimension of base task 0, and the noise again of base task 4."""
    every = load_tasks(SUITE)
    first, other = ([task for task in every if task.start[1] == base] for base in (0, 4))
    tasks = [replace(task, perturbation=own) for task, own in zip(first, PERTURBATIONS, strict=False)]
    return [*tasks, replace(other[0], perturbation=PERTURBATIONS[2])]


def perturbed_plan(tasks: Sequence[Task], shard: str | None = None) -> Plan:
    """One episode of six steps of each task, in their order."""
    ids = tuple(task.task_id for task in tasks)
    episodes = Episodes(SUITE, ids, 0, 1, 7, Shard.parse(shard) if shard else None)
    changes: dict[str, Any] = {"tasks": list(tasks), "episodes": episodes, "make_env": LiberoEnv}
    return replace(plan_of(), max_steps=6, **changes)


def make_policy(observe_first: Callable[[], Observation]) -> BuiltPolicy:
    return BuiltPolicy(PixelPolicy())


def setup() -> dict[str, str]:
    return prepare_suite(SUITE)


def run(folder: Path, plan: Plan, workers: int | None = None) -> Run:
    """Run a plan here, or with so many workers of Ray's."""
    if workers is None:
        started: Any = LocalRunner(PixelPolicy(), setup())
    else:
        options = RunnerConfig("ray", workers=workers, quiet_episodes=0)
        started = launch(options, make_policy, setup, most_episodes=plan.num_episodes, wants_gpu=False)
    info = {"simulator": started.simulator, "provenance": PROVENANCE}
    with closing(started), RunWriter(folder) as writer:
        recorder = RunRecorder(plan, writer, SafeTracker(NullTracker()), info, started.engagement)
        started.run(plan, recorder)
    return read_run(folder)
