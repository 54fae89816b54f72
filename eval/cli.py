"""The command line: compose, check, run, print the summary."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.text import Text

from eval.analysis.summary import Summary, is_random, setting, summarise
from eval.app import CommandError, command
from eval.config.errors import one_line
from eval.config.groups import policy_label
from eval.config.schema import Config, ConfigError
from eval.config.targets import refuse_recorded_targets
from eval.config.tasks import check, choose_episodes, choose_tasks, warnings_of
from eval.episodes.plan import Plan
from eval.episodes.resume import ResumedRun, reopen
from eval.records import provenance
from eval.records.episodes import Episodes
from eval.records.folders import refuse_used
from eval.records.reader import Run, read_run
from eval.records.resume import (
    current_overrides,
    nothing_left,
    portable,
    recorded,
    refuse_changed,
    refuse_joined,
)
from eval.records.video import VideoMode
from eval.records.writer import RunWriter
from eval.render.console import print_error, print_info, report_console
from eval.render.settings import spell_settings
from eval.render.summary import render
from eval.runners.base import Runner, RunnerError
from eval.runners.recorder import RunFailed, RunRecorder
from eval.sim.stack import SimulatorError
from eval.sim.tasks import Task
from eval.specs.base import PolicySpec
from eval.specs.choose import checked_spec
from eval.tracking.base import NullTracker, SafeTracker, TrackedRun, TrackingError
from policies.seeding import Seeding
from policies.text import pluralize

T = TypeVar("T")

# Errors before the first episode, apart from OmegaConf's.
STARTING = (ValueError, OSError, SimulatorError, TrackingError, RunnerError)


@dataclass(frozen=True)
class Start:
    """Where a process begins: a new run, or one that earlier processes began."""

    cfg: DictConfig
    overrides: list[str]  # of this command line
    folder: Path
    earlier: list[str] = field(default_factory=list)  # those that the run began with
    before: Mapping[str, Any] | None = None  # run.json as it was; None for a new run
    finished: Run | None = None  # records of a run with nothing left to do


def find_start(cfg: DictConfig) -> Start:
    """Decide between a new run and `resume=FOLDER`, which composes the configuration as that run did.

    Raises:
        ConfigError: `resume` is empty.
        FileNotFoundError, ValueError: it names no run that can be continued.
        Changed: its configuration would be another one now.
    """
    overrides = list(HydraConfig.get().overrides.task)
    if cfg.resume is None:
        return Start(cfg, overrides, Path(HydraConfig.get().runtime.output_dir))
    if not cfg.resume:
        raise ConfigError("resume must be the folder of a run, got ''; give resume=FOLDER, or leave it out")
    folder = Path(cfg.resume)
    before = recorded(folder)
    overrides = [text for text in overrides if not text.startswith("resume=")]
    finished = nothing_left(folder, before)
    if finished is not None and not overrides:  # shown whatever the configuration would be today
        return Start(cfg, overrides, folder, before["overrides"], before, finished)
    refuse_joined(folder, before)
    cfg = compose("config", [*current_overrides(before["overrides"]), *overrides])
    refuse_recorded_targets(cfg, overrides, config_folders())
    refuse_changed(folder, before, {"config": plain(cfg)})
    return Start(cfg, overrides, folder, before["overrides"], before, finished)


def config_folders() -> list[Path]:
    """The folders of `--config-dir`."""
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.provider == "command-line"]


def plain(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def run(cfg: DictConfig) -> None:
    """Do one run or resume one, from checks to printed summary; of a finished one, only print the summary.

    Raises:
        CommandError: before the first episode; nothing was recorded.
        RunFailed: the records are kept and the summary is printed, but the run is no result.
    """
    with ExitStack() as stack:
        try:
            start = find_start(cfg)
            if start.finished is not None:
                episodes_done = pluralize(len(start.finished.episodes), "episode")
                print_info(f"nothing is left to run: {episodes_done} finished")
                _show(summarise(start.finished), start.folder)
                return
            config = check(start.cfg)
            spec = checked_spec(config, start.overrides)
            if start.before is None:
                refuse_used(start.folder)
            # The network's modules take seconds to import; what is refused above needs none of them.
            from eval.runners.open import open_runner

            tasks = choose_tasks(config)
            episodes = choose_episodes(config, tasks)
            tracker = _tracker(config)
            tracker.check()
            earlier = stack.enter_context(reopen(start.folder)) if start.before else None
            left = episodes.left(earlier.done if earlier else ())
            runner = stack.enter_context(closing(open_runner(config, spec, tasks, left, start.folder)))
            plan = make_plan(config, tasks, episodes, runner, earlier)
            run_info = describe(start, config, spec, plan, runner, earlier)
            tracker.start(tracked_run(start, config, plan, run_info))
        except (*STARTING, OmegaConfBaseException) as error:
            raise CommandError(str(error)) from error
        label = policy_label(plan.policy, run_info["config"])
        print_info(announcement(plan, label, runner.about, start.folder))
        if settings := runner.about.get("settings"):
            print_info(f"checkpoint settings: {spell_settings(settings)}")
        for warning in warnings_of(config, has_stages=spec.has_stages):
            print_info(f"warning: {warning}")
        writer = earlier.writer if earlier else stack.enter_context(RunWriter(start.folder))
        recorder = RunRecorder(
            plan, writer, tracker, run_info, runner.engagement, earlier.run if earlier else None
        )
        try:
            runner.run(plan, recorder)
        except BaseException:
            for problem in _close(recorder):
                print_error(problem)
            print_info(f"go on with it: python -m eval resume={start.folder}")
            raise
        for problem in _close(recorder):
            raise RunFailed(f"the run ended, but not its bookkeeping: {one_line(problem)}") from problem


def make_plan(
    config: Config, tasks: Sequence[Task], episodes: Episodes, runner: Runner, earlier: ResumedRun | None
) -> Plan:
    """Plan a run, or what is left of it; Changed where policy, weights or simulator are not as recorded."""
    label = runner.about.get("weights_label")
    plan = Plan(
        tasks=tasks,
        episodes=episodes,
        seeding=cast(Seeding, config.protocol.seeding),
        max_steps=config.suite.max_steps,
        max_errors=config.runner.max_errors,
        warmup_inferences=config.runner.warmup_inferences,
        video=VideoMode(config.video),
        misses_allowed=config.optim.on_mismatch == "fallback",
        policy=config.policy.name,
        checkpoint=runner.about.get("checkpoint"),
        checkpoint_sha256=runner.about.get("weights_sha256"),
        weights_label=label if is_random(label) else None,
    )
    return plan if earlier is None else earlier.rest_of(plan, runner.about, runner.simulator)


def describe(
    start: Start,
    config: Config,
    spec: PolicySpec,
    plan: Plan,
    runner: Runner,
    earlier: ResumedRun | None,
) -> dict[str, Any]:
    """Collect everything in run.json except the outcome."""
    origin = provenance.collect(spec.gpu_index(config) if config.runner.name == "local" else 0)
    now = {
        "config": portable(plain(start.cfg)),
        "overrides": [*start.earlier, *start.overrides],
        "runner": runner.facts,
    }
    if earlier is not None:
        return earlier.describe(now, origin)
    return now | {
        "episodes": [plan.episodes.to_dict()],
        "planned_episodes": plan.num_episodes,
        "policy": portable(runner.about),
        "weights_label": portable(runner.about.get("weights_label")),
        "gl_backend": runner.simulator["gl"],
        "simulator": dict(runner.simulator),
        "first_frame_sha256": None,
        "provenance": origin,
        "notes": warnings_of(config, has_stages=spec.has_stages),
        "resumed": [],
    }


def tracked_run(start: Start, config: Config, plan: Plan, run_info: Mapping[str, Any]) -> TrackedRun:
    """Describe the run for the tracker; there, a resumed run is a run of its own."""
    name = f"{config.policy.name}-{config.suite.name}-{start.folder.name}"
    tags = list(config.tracking.tags)
    if plan.weights_label:
        name, tags = f"RANDOM-WEIGHTS-{name}", [*tags, "random weights"]
    if start.before is not None:
        tags = [*tags, "resumed"]
    about = {key: value for key, value in run_info.items() if key != "config"}
    return TrackedRun(run_info["config"] | {"run": about}, name, start.folder, config.tracking.group, tags)


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


def _close(recorder: RunRecorder) -> list[Exception]:
    """Write run.json, mirror and print the summary of whatever was recorded; return what went wrong.

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
    summary = attempt(lambda: _summary(folder))
    attempt(lambda: recorder.tracker.finish(summary.to_dict() if summary else {}))
    if recorder.tracker.error:
        attempt(recorder.write_run)
        summary = attempt(lambda: _summary(folder))
    _show(summary, folder)
    return problems


def _show(summary: Summary | None, folder: Path) -> None:
    if summary:
        report_console().print(render(summary))
    report_console().print(Text(f"records: {folder}"), soft_wrap=True)


def _summary(folder: Path) -> Summary | None:
    records = read_run(folder)
    return summarise(records) if records.episodes else None


def _tracker(config: Config) -> SafeTracker:
    if config.tracking.name == "none":
        return SafeTracker(NullTracker())
    from eval.tracking.wandb import WandbTracker  # not installed where nothing is tracked

    return SafeTracker(WandbTracker(config.tracking.mode, config.tracking.project, config.tracking.entity))


def main() -> None:
    command("config", run)
