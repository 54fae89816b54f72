"""Start `runner=ray`: policies are built while workers build their first environments."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from eval.config.schema import Config, RunnerConfig
from eval.episodes.capture import first_episode
from eval.runners.ray.answers import Answer, FirstObservation, cause_of_death, first_answers
from eval.runners.ray.cluster import connect
from eval.runners.ray.policy_server import MakePolicy, PolicyFacts
from eval.runners.ray.processes import Launcher, WorkerProcess
from eval.runners.ray.runner import RayRunner
from eval.runners.ray.serving import build_served_policy
from eval.runners.ray.worker import BuildEnv, Setup, Simulator
from eval.sim.benchmark import prepare_suite
from eval.sim.env import LiberoEnv
from eval.sim.tasks import Task
from eval.specs.base import PolicySpec
from policies.base import EpisodeKey

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prebuild:
    """Environments that workers build while policies are built.

    Attributes:
        build_envs: builds each task's environment; workers divide the tasks among them.
        observe_at: an episode of the first task, whose start the first worker observes; backends that are
            built for shapes are built with that observation.
    """

    build_envs: Mapping[int, BuildEnv]
    observe_at: EpisodeKey


def start_ray(
    config: Config, spec: PolicySpec, tasks: Sequence[Task], left: Sequence[EpisodeKey]
) -> RayRunner:
    """Start the runner for the episodes `left` of a configuration; errors are those of `launch`."""
    ids = {key.task_id for key in left}
    tasks = [task for task in tasks if task.task_id in ids] or tasks[:1]
    firsts = reversed({task.scene: task for task in reversed(tasks)}.values())  # one of each scene
    envs = {task.task_id: partial(LiberoEnv, task, seeding=config.protocol.seeding) for task in firsts}
    return launch(
        config.runner,
        partial(build_served_policy, config, [task.task_id for task in tasks]),
        partial(prepare_suite, config.suite.name),
        prebuild=Prebuild(envs, first_episode(tasks, config.seed)) if spec.sees_images else None,
        most_episodes=max(1, len(left)),
        wants_gpu=spec.wants_gpu(config),
    )


def launch(
    options: RunnerConfig,
    make_policy: MakePolicy,
    setup: Setup,
    *,
    prebuild: Prebuild | None = None,
    most_episodes: int,
    wants_gpu: bool,
) -> RayRunner:
    """Start policies and workers, and wait until they are ready.

    Args:
        make_policy: builds the policy, in a process of its own.
        setup: prepares a worker's process.
        most_episodes: how many `run` may be given; there are no more workers than that, nor than
            `runner.workers`.
        wants_gpu: whether the policy runs on a GPU where there is one.

    Raises:
        RunnerError: Ray cannot be started or reached, the cluster is too small, or a process died.
        Changed: the workers' simulators differ.
        Exception: what building a policy or preparing a worker raised.
    """
    connect(options)
    try:
        return _launch(options, make_policy, setup, prebuild, most_episodes, wants_gpu)
    except BaseException:
        ray.shutdown()
        raise


def _launch(
    options: RunnerConfig,
    make_policy: MakePolicy,
    setup: Setup,
    prebuild: Prebuild | None,
    most_episodes: int,
    wants_gpu: bool,
) -> RayRunner:
    gpus = ray.cluster_resources().get("GPU", 0)
    launcher = Launcher(options, make_policy, setup, min(1.0, gpus / options.policies) if wants_gpu else 0.0)
    # Before workers, which could fill up the nodes with GPUs.
    servers = [launcher.start_policy_server() for _ in range(options.policies)]
    workers = [launcher.start_worker(number) for number in range(min(options.workers, most_episodes))]
    task_of = dict(zip(range(len(workers)), itertools.cycle(prebuild.build_envs))) if prebuild else {}
    built = _prebuild(workers, task_of, prebuild) if prebuild else []
    launcher.first_observation = FirstObservation(built[:1], options.episode_timeout_s)
    policies = [launcher.build_policy(server) for server in servers]
    facts: PolicyFacts = first_answers([policy.built for policy in policies], options.start_timeout_s)[0]
    for worker, reason in _lost(workers, built, options.episode_timeout_s):
        log.warning("worker %d has no environment and is replaced: %s", worker.number, reason)
        launcher.restart(worker)
        del task_of[worker.number]
    simulator = _same(first_answers([worker.started for worker in workers], options.start_timeout_s))
    if facts.one_at_a_time is not None:
        log.warning(
            "runner.max_batch=%d, but requests are served one at a time: %s",
            options.max_batch,
            facts.one_at_a_time,
        )
    return RayRunner(options, launcher, policies, workers, task_of, facts, simulator)


def _prebuild(
    workers: Sequence[WorkerProcess], task_of: Mapping[int, int], prebuild: Prebuild
) -> list[Answer]:
    """Let workers build environments; return their answers.

    An error shows at the worker's first episode, which builds again.
    """
    return [
        worker.handle.build.remote(
            prebuild.build_envs[task_of[worker.number]],
            prebuild.observe_at if worker is workers[0] else None,
        )
        for worker in workers
    ]


def _lost(
    workers: Sequence[WorkerProcess], built: Sequence[Answer], limit_s: float
) -> Iterator[tuple[WorkerProcess, str]]:
    """Wait for the environments; yield the workers that hang or died over theirs, and which it was."""
    late = ray.wait(list(built), num_returns=len(built), timeout=limit_s)[1] if built else []
    for worker, answer in zip(workers, built, strict=False):
        if answer in late:
            yield worker, f"runner.episode_timeout_s={limit_s:g} is over"
        elif (death := cause_of_death(answer)) is not None:
            yield worker, death


def _same(simulators: Sequence[Simulator]) -> Mapping[str, Any]:
    """The simulator that all workers have; raise Changed where one differs."""
    first = simulators[0].about
    for other in simulators[1:]:
        other.refuse_unlike(first)
    return first
