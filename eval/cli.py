"""The command line: Hydra composes, everything is checked, the runner runs, the summary is printed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.text import Text

from eval import provenance
from eval.build import build_policy, choose_device
from eval.capture import example_requests
from eval.command import Refused, command, complain
from eval.libero_env import Task, load_tasks
from eval.messages import one_line
from eval.metrics import Summary, is_random, setting, summarise
from eval.records import RunWriter, Seeding, refuse_used
from eval.run_reader import read_run
from eval.runner import LocalRunner, Plan, RunFailed
from eval.schema import Config, ConfigError
from eval.sim_stack import SimStackError, prepare
from eval.summary import render, report_console
from eval.tracking import NullTracker, SafeTracker, TrackedRun, TrackingError
from eval.video import VideoMode

T = TypeVar("T")


def check(cfg: DictConfig) -> Config:
    """Return the configuration as dataclasses.

    Raises:
        ConfigError: a value out of range, or a key without a value.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def choose_tasks(config: Config) -> list[Task]:
    """Return the tasks that suite and protocol choose.

    Raises:
        ConfigError: a task or an episode that the suite does not have.
    """
    tasks = load_tasks(config.suite.name)
    number = config.protocol.num_tasks
    if number is not None and number > len(tasks):
        raise ConfigError(
            f"protocol.num_tasks must be <= {len(tasks)} for {config.suite.name}, or null for all, "
            f"got {number}"
        )
    ids = config.suite.tasks if config.suite.tasks is not None else range(len(tasks))[:number]
    missing = [i for i in ids if not 0 <= i < len(tasks)]
    if missing:
        raise ConfigError(f"suite.tasks must be 0 to {len(tasks) - 1} for {config.suite.name}, got {missing}")
    last = config.protocol.first_episode + config.protocol.episodes - 1
    for i in ids:
        states = len(tasks[i].init_states)
        if last >= states:
            raise ConfigError(
                f"protocol.first_episode + protocol.episodes must be <= {states}, the official initial "
                f"states of {config.suite.name} task {i}, "
                f"got {config.protocol.first_episode} + {config.protocol.episodes}"
            )
    return [tasks[i] for i in ids]


def refuse_ignored(config: Config, overrides: list[str]) -> None:
    """Raise ConfigError for overrides that the chosen policy would not read."""
    ignored = [text for text in overrides if text.lstrip("+~").startswith(("checkpoint", "denoise"))]
    if config.policy.kind == "oracle" and ignored:
        raise ConfigError(
            "policy=oracle has no checkpoint and no denoise steps; "
            f"drop {', '.join(ignored)} or choose another policy"
        )


def run(cfg: DictConfig) -> None:
    """Do one run into Hydra's output folder, from checks to printed summary.

    Raises:
        Refused: before the first episode; nothing was recorded.
        RunFailed: the records are kept and the summary is printed, but the run is no result.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = check(cfg)
        refuse_ignored(config, list(HydraConfig.get().overrides.task))
        refuse_used(folder)
        tasks = choose_tasks(config)
        tracker = _tracker(config)
        tracker.check()
        stack = prepare()
        policy = build_policy(config, lambda policy: example_requests(tasks, policy, config.seed))
    except (ValueError, OSError, SimStackError, TrackingError, OmegaConfBaseException) as error:
        raise Refused(str(error)) from error

    about = policy.provenance()
    label = about.get("weights_label")
    random = label if is_random(label) else None
    first = config.protocol.first_episode
    plan = Plan(
        tasks=tasks,
        episodes=range(first, first + config.protocol.episodes),
        seed=config.seed,
        seeding=cast(Seeding, config.protocol.seeding),
        max_steps=config.suite.max_steps,
        max_errors=config.runner.max_errors,
        warmup_inferences=config.runner.warmup_inferences,
        video=VideoMode(config.video),
        misses_allowed=config.optim.on_mismatch == "fallback",
        checkpoint=about.get("checkpoint"),
        checkpoint_sha256=about.get("weights_sha256"),
        weights_label=random,
    )
    composed = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    run_info: dict[str, Any] = {
        "overrides": list(HydraConfig.get().overrides.task),
        "planned_episodes": plan.num_episodes,
        "policy": about,
        "weights_label": label,
        "gl_backend": stack["gl"],
        "simulator": stack,
        "first_frame_sha256": None,
        "provenance": provenance.collect(choose_device(config.policy.device).index or 0),
    }
    name = f"{config.policy.name}-{config.suite.name}-{folder.name}"
    tags = list(config.tracking.tags)
    if random:
        name, tags = f"RANDOM-WEIGHTS-{name}", [*tags, "random weights"]
    try:
        tracker.start(TrackedRun(composed | {"run": run_info}, name, folder, config.tracking.group, tags))
    except TrackingError as error:
        raise Refused(str(error)) from error
    report_console(stderr=True).print(Text(announcement(plan, policy.name, about, folder)), soft_wrap=True)
    with RunWriter(folder) as writer:
        runner = LocalRunner(plan, policy, writer, tracker, {"config": composed} | run_info)
        try:
            runner.run()
        except BaseException:
            for problem in _close(runner):
                complain(problem)
            raise
        for problem in _close(runner):
            raise RunFailed(f"the run ended, but not its bookkeeping: {one_line(problem)}") from problem


def announcement(plan: Plan, policy: str, about: Mapping[str, Any], folder: Path) -> str:
    """Return what a user wants to know before the first episode is over."""
    tasks, episodes = len(plan.tasks), len(plan.episodes)
    parts = [
        f"{plan.num_episodes} episodes of {plan.tasks[0].suite} ({tasks} tasks x {episodes})",
        f"policy {policy}",
        f"checkpoint {plan.checkpoint}" if plan.checkpoint else None,
        plan.weights_label,
        setting(about),
        f"records: {folder}",
    ]
    return " | ".join(part for part in parts if part)


def _close(runner: LocalRunner) -> list[Exception]:
    """Write run.json, mirror and print the summary of whatever was recorded; return what went wrong.

    Each step is tried whatever became of the one before.
    """
    problems: list[Exception] = []

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except Exception as error:  # noqa: BLE001  the steps after this one are still worth doing
            problems.append(error)
            return None

    folder = runner.writer.folder
    attempt(runner.write_run)
    summary = attempt(lambda: _summary(folder))
    attempt(lambda: runner.tracker.finish(summary.to_dict() if summary else {}))
    if runner.tracker.error:
        attempt(runner.write_run)
        summary = attempt(lambda: _summary(folder))
    if summary:
        report_console().print(render(summary))
    report_console().print(Text(f"records: {folder}"), soft_wrap=True)
    return problems


def _summary(folder: Path) -> Summary | None:
    records = read_run(folder)
    return summarise(records) if records.episodes else None


def _tracker(config: Config) -> SafeTracker:
    if config.tracking.name == "none":
        return SafeTracker(NullTracker())
    from eval.wandb_tracker import WandbTracker  # not installed where nothing is tracked

    return SafeTracker(WandbTracker(config.tracking.mode, config.tracking.project, config.tracking.entity))


def main() -> None:
    """Run the command line; `eval.command` says how it ends."""
    command("config", run)
