"""Runs of the fakes through the real runners, records and resume; as a program, in a process to be killed:
`python -m tests.eval.fake_run FOLDER RUNNER OPTIONS [CLOCK]`."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from eval.analysis.sequential import EarlyStop
from eval.config.schema import RunnerConfig
from eval.episodes.capture import first_episode
from eval.episodes.clock import FREE, Clock, Fixed
from eval.episodes.plan import Plan
from eval.episodes.resume import reopen
from eval.records.episodes import Episodes, Shard
from eval.records.folders import EPISODES_FILE
from eval.records.reader import Run, read_run
from eval.records.video import VideoMode
from eval.records.writer import RunWriter
from eval.runners.base import Runner
from eval.runners.local import LocalRunner
from eval.runners.recorder import RunRecorder
from eval.sim.tasks import Task
from eval.tracking.base import NullTracker, SafeTracker
from policies.base import GuideOptions
from tests.eval.fakes import SIMULATOR, ArithmeticEnv, ArithmeticPolicy, make_policy, tasks, use_fakes

NUM_TASKS, NUM_EPISODES = 3, 4
CLOCKS = {"free": FREE, "rtc": Clock("rtc", Fixed(30.0), guide=GuideOptions(5.0))}
PROVENANCE = {"git": {"commit": "c", "dirty": False, "error": None}, "packages": {}}


def plan_of(order: Sequence[int] = range(NUM_TASKS), shard: str | None = None, **changes: Any) -> Plan:
    """The plan of 3 tasks with 4 episodes each."""
    every = tasks(NUM_TASKS)
    episodes = Episodes(
        "libero_spatial", tuple(order), 0, NUM_EPISODES, 7, Shard.parse(shard) if shard else None
    )
    options: dict[str, Any] = {
        "seeding": "paired",
        "max_steps": 30,
        "max_errors": 0,
        "warmup_inferences": 3,
        "video": VideoMode.NONE,
        "misses_allowed": False,
        "policy": "arithmetic",
        "checkpoint": "arithmetic",
        "checkpoint_sha256": "0" * 64,
        "weights_label": None,
        "make_env": ArithmeticEnv,
    }
    return Plan(tasks=[every[i] for i in order], episodes=episodes, **(options | changes))


def build_env(task: Task) -> Any:
    """The environment of a task."""
    return ArithmeticEnv(task)


def start(
    runner: str = "local",
    most_episodes: int = NUM_TASKS * NUM_EPISODES,
    order: Sequence[Task] = (),
    **options: Any,
) -> Runner:
    """A runner of the fakes."""
    if runner == "local":
        return LocalRunner(ArithmeticPolicy(), SIMULATOR, **options)
    from eval.runners.ray.start import Prebuild, launch

    envs = {task.task_id: partial(build_env, task) for task in order}
    return launch(
        RunnerConfig("ray", **options),
        make_policy,
        use_fakes,
        prebuild=Prebuild(envs, first_episode(order, 7)) if order else None,
        most_episodes=most_episodes,
        wants_gpu=False,
    )


def run(
    folder: Path,
    plan: Plan | None = None,
    runner: str = "local",
    stop: EarlyStop | None = None,
    **options: Any,
) -> Run:
    """Run a plan, or what the folder has left of it, until `stop` is decided, and return the records."""
    plan = plan or plan_of()
    info: dict[str, Any] = {
        "config": {"seed": 7, "runner": {"name": runner}},
        "policy": ArithmeticPolicy().provenance(),
        "simulator": {"gl": "none"},
        "episodes": [plan.episodes.to_dict()],
        "planned_episodes": plan.num_episodes,
        "provenance": PROVENANCE,
        "overrides": [],
    }
    with closing(start(runner, plan.num_episodes, plan.tasks, **options)) as started:
        info["runner"] = started.facts
        earlier = reopen(folder) if (folder / EPISODES_FILE).exists() else None
        if earlier is not None:
            plan = earlier.rest_of(plan, started.about, started.simulator)
            info = earlier.describe({"runner": started.facts}, PROVENANCE)
        with earlier.writer if earlier else RunWriter(folder) as writer:
            tracker = SafeTracker(NullTracker())
            recorder = RunRecorder(
                plan,
                writer,
                tracker,
                info,
                started.engagement,
                earlier.run if earlier else None,
                stop=stop,
            )
            try:
                started.run(plan, recorder)
            finally:
                recorder.write_run()
    return read_run(folder)


def results(run: Run) -> dict[Any, Any]:
    """What must be the same however a run was made."""
    assert len({episode.key for episode in run.episodes}) == len(run.episodes)
    return {
        episode.key: (
            episode.success,
            episode.steps,
            episode.inferences,
            episode.actions_sha256,
            episode.initial_state_sha256,
        )
        for episode in run.episodes
    }


if __name__ == "__main__":
    clock = CLOCKS[sys.argv[4] if len(sys.argv) > 4 else "free"]
    run(Path(sys.argv[1]), plan_of(clock=clock), sys.argv[2], **json.loads(sys.argv[3]))
