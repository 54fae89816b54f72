"""One run, from a checked configuration to its records: what the command line and `eval.api` share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from rich.console import Console

from eval.analysis.sequential import EarlyStop
from eval.analysis.summary import Summary, is_random, setting, summarise
from eval.app.ending import print_summary
from eval.app.stopping import open_stop
from eval.config.groups import policy_label
from eval.config.schema import Config
from eval.config.tasks import choose_episodes, choose_tasks, instruction_source, warnings_of
from eval.episodes.clock import Clock
from eval.episodes.clocks import make_clock
from eval.episodes.plan import Plan
from eval.episodes.resume import ResumedRun, reopen
from eval.records import provenance
from eval.records.episodes import Episodes
from eval.records.reader import read_run
from eval.records.resume import portable
from eval.records.video import VideoMode
from eval.records.writer import RunWriter
from eval.render.console import print_error, print_info, print_words, report_console
from eval.render.settings import spell_settings
from eval.runners.base import Runner
from eval.runners.recorder import RunRecorder
from eval.sim.tasks import Task
from eval.specs.base import PolicySpec
from eval.tracking.base import RecordsTracker, TrackedRun, new_id
from policies.base import EpisodeKey
from policies.seeding import Seeding
from policies.text import pluralize

T = TypeVar("T")

OpenRunner = Callable[[Sequence[Task], Sequence[EpisodeKey]], Runner]
"""Opens the runner for these tasks, of which these episodes are left."""


Show = Callable[[Summary | None, Path], None]
"""Shows the summary of what a folder records."""


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Attributes:
        config: as composed, in plain values.
        overrides: of this command line; earlier: of those that the run began with.
        before: run.json as it was; None for a new run.
    """

    config: Mapping[str, Any]
    overrides: Sequence[str]
    folder: Path
    earlier: Sequence[str] = ()
    before: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Session:
    """A run that is ready to begin."""

    origin: Origin
    plan: Plan
    runner: Runner
    tracker: RecordsTracker
    run_info: Mapping[str, Any]
    earlier: ResumedRun | None
    warnings: Sequence[str]
    stop: EarlyStop | None = None

    def announce(self) -> None:
        """Say what will run, on which policy, into which folder."""
        label = policy_label(self.plan.policy, self.run_info["config"])
        print_words(announcement(self.plan, label, self.runner.about, self.origin.folder))
        if settings := self.runner.about.get("settings"):
            print_words(f"checkpoint settings: {spell_settings(settings)}")
        if self.stop is not None:
            print_info(
                "episodes come in the order of the test, until it shows whether this run loses more than "
                f"{self.stop.test.margin_points:g} points of success to {self.origin.config['against']}"
            )
        for warning in self.warnings:
            print_info(f"warning: {warning}")

    def run(
        self, stack: ExitStack, console: Console | None = None, show: Show | None = print_summary
    ) -> list[Exception]:
        """Run what is left, and write and mirror what was recorded, whatever ends it.

        Args:
            stack: closes the records.
            console: shows the progress; stderr by default.
            show: shows the summary.

        Returns what went wrong in the bookkeeping after the last episode.

        Raises:
            RunFailed: the records are kept, but the run is no result.
        """
        earlier = self.earlier
        writer = earlier.writer if earlier else stack.enter_context(RunWriter(self.origin.folder))
        recorder = RunRecorder(
            self.plan,
            writer,
            self.tracker,
            self.run_info,
            self.runner.engagement,
            earlier.run if earlier else None,
            console or report_console(stderr=True),
            self.stop,
        )
        try:
            self.runner.run(self.plan, recorder)
        except BaseException:
            for problem in close(recorder, show):
                print_error(problem)
            raise
        return close(recorder, show)


def prepare(
    stack: ExitStack,
    config: Config,
    spec: PolicySpec,
    origin: Origin,
    tracker: RecordsTracker,
    open_runner: OpenRunner,
) -> Session:
    """Choose the episodes, open the runner and plan; nothing is recorded yet.

    Args:
        stack: closes the runner, and the records of a run that is resumed.

    Raises:
        ConfigError, ValueError, OSError, SimulatorError, TrackingError, RunnerError: naming what is wrong.
    """
    clock = make_clock(config)
    clock.check_chunks(*spec.known_chunks(config))
    tasks = choose_tasks(config)
    episodes = choose_episodes(config, tasks)
    tracker.check()
    earlier = stack.enter_context(reopen(origin.folder)) if origin.before else None
    left = episodes.left(earlier.done if earlier else ())
    runner = stack.enter_context(closing(open_runner(tasks, left)))
    plan = make_plan(config, clock, tasks, episodes, runner, earlier)
    stop = open_stop(config, plan, origin.before)
    if stop is not None:
        plan = replace(plan, order=stop.order)
    warnings = warnings_of(config, has_stages=spec.has_stages)
    gpu = spec.gpu_index(config) if config.runner.name == "local" else 0
    run_info = describe(origin, config, plan, runner, earlier, provenance.collect(gpu), warnings)
    if config.tracking.name != "none":
        run_info["wandb_id"] = (origin.before or {}).get("wandb_id") or new_id()
        tracker.start(tracked_run(origin, config, plan, run_info, earlier))
    return Session(origin, plan, runner, tracker, run_info, earlier, warnings, stop)


def make_plan(
    config: Config,
    clock: Clock,
    tasks: Sequence[Task],
    episodes: Episodes,
    runner: Runner,
    earlier: ResumedRun | None,
) -> Plan:
    """Plan a run, or what is left of it.

    Raises:
        CannotServe: the clock's delay does not fit the policy's chunks.
        Changed: policy, weights or simulator are not as recorded.
    """
    clock.check_policy(runner.about)
    label = runner.about.get("weights_label")
    plan = Plan(
        tasks=tasks,
        episodes=episodes,
        seeding=cast(Seeding, config.protocol.seeding),
        max_steps=config.suite.max_steps,
        max_errors=config.runner.max_errors,
        warmup_inferences=config.runner.warmup_inferences,
        video=VideoMode(config.video),
        clock=clock,
        misses_allowed=config.optim.on_mismatch == "fallback",
        policy=config.policy.name,
        checkpoint=runner.about.get("checkpoint"),
        checkpoint_sha256=runner.about.get("weights_sha256"),
        weights_label=label if is_random(label) else None,
    )
    return plan if earlier is None else earlier.rest_of(plan, runner.about, runner.simulator)


def describe(
    origin: Origin,
    config: Config,
    plan: Plan,
    runner: Runner,
    earlier: ResumedRun | None,
    made_by: Mapping[str, Any],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Collect everything in run.json except the outcome; `made_by` is `provenance.collect()`."""
    now = {
        "config": portable(origin.config),
        "overrides": [*origin.earlier, *origin.overrides],
        "runner": runner.facts,
    }
    if earlier is not None:
        return earlier.describe(now, made_by)
    return now | {
        "episodes": [plan.episodes.to_dict()],
        "planned_episodes": plan.num_episodes,
        "policy": portable(runner.about),
        "weights_label": portable(runner.about.get("weights_label")),
        "gl_backend": runner.simulator["gl"],
        "simulator": dict(runner.simulator),
        "first_frame_sha256": None,
        "instructions": instruction_source(config),
        "provenance": made_by,
        "notes": list(warnings),
        "resumed": [],
    }


def tracked_run(
    origin: Origin, config: Config, plan: Plan, run_info: Mapping[str, Any], earlier: ResumedRun | None
) -> TrackedRun:
    """Describe the run for the tracker, which goes on with that of the processes before."""
    began = datetime.fromisoformat(run_info["provenance"]["time"])
    setting = [plan.policy, config.suite.name, config.protocol.name, plan.checkpoint]
    name = f"{' '.join(filter(None, setting))}, {began:%Y-%m-%d %H:%M}"
    if plan.weights_label:
        name = f"RANDOM WEIGHTS {name}"
    tags = [
        *(plan.policy, config.suite.name, plan.checkpoint, run_info["policy"].get("device")),
        "random weights" if plan.weights_label else None,
        "resumed" if earlier else None,
        *config.tracking.tags,
    ]
    about = {key: value for key, value in run_info.items() if key != "config"}
    return TrackedRun(
        config=run_info["config"] | {"run": about},
        name=name,
        folder=origin.folder,
        group=config.tracking.group,
        tags=[tag for tag in tags if tag],
        id=run_info["wandb_id"],
        earlier=earlier.run if earlier else None,
    )


def announcement(plan: Plan, policy: str, about: Mapping[str, Any], folder: Path) -> str:
    """Word the line that a user sees before the first episode is over."""
    tasks, shard = pluralize(len(plan.tasks), "task"), plan.episodes.shard
    parts = [
        f"{pluralize(plan.num_episodes, 'episode')} of {plan.tasks[0].suite} "
        + (
            f"(shard {shard} of {tasks} x {plan.episodes.count})"
            if shard
            else f"({tasks} x {plan.episodes.count})"
        ),
        f"{len(plan.done)} done already" if plan.done else None,
        f"policy {policy}",
        f"checkpoint {plan.checkpoint}" if plan.checkpoint else None,
        plan.weights_label,
        setting(about),
        f"records: {folder}",
    ]
    return " | ".join(part for part in parts if part)


def close(recorder: RunRecorder, show: Show | None) -> list[Exception]:
    """Write run.json, mirror and show the summary of whatever was recorded; return what went wrong.

    Each step is tried even if the one before failed.
    """
    problems: list[Exception] = []

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except Exception as error:  # noqa: BLE001  the steps after this one are still worth doing
            problems.append(error)
            return None

    folder = recorder.writer.folder
    attempt(recorder.write_run)
    summary = attempt(lambda: summary_of(folder))
    attempt(lambda: recorder.tracker.finish(summary.to_dict() if summary else {}))
    if recorder.tracker.error:
        attempt(recorder.write_run)
        summary = attempt(lambda: summary_of(folder))
    if show is not None:
        show(summary, folder)
    return problems


def summary_of(folder: Path) -> Summary | None:
    """Summarise what a folder records; None where no episode is."""
    records = read_run(folder)
    return summarise(records) if records.episodes else None
