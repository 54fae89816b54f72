"""The command line: Hydra composes, everything is checked, the runner runs, the summary is printed."""

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

from eval import provenance
from eval.bookkeeper import Bookkeeper, RunFailed
from eval.build import build_policy, choose_device, choose_passes
from eval.capture import example_requests
from eval.choices import policy_label
from eval.command import Refused, command
from eval.libero_env import Task, load_tasks
from eval.messages import one_line
from eval.metrics import Summary, is_random, setting, summarise
from eval.plan import Episodes, Plan, Shard
from eval.recording import recording
from eval.records import RunWriter, Seeding, refuse_used
from eval.resume import Earlier, nothing_left, recorded, refuse_changed, refuse_joined, reopen
from eval.run_reader import read_run
from eval.runner import LocalRunner, Runner, RunnerError
from eval.schema import RAY_ONLY, Config, ConfigError
from eval.sim_stack import SimStackError, prepare
from eval.summary import complain, render, report_console, say
from eval.tracking import NullTracker, SafeTracker, TrackedRun, TrackingError
from eval.video import VideoMode
from eval.words import counted
from policies.base import EpisodeKey

T = TypeVar("T")

# What may be raised before the first episode, apart from OmegaConf's.
STARTING = (ValueError, OSError, SimStackError, TrackingError, RunnerError)


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
    """Raise ConfigError for overrides that the chosen policy or runner would not read."""
    ignored = [text for text in overrides if text.lstrip("+~").startswith(("checkpoint", "denoise"))]
    if config.policy.kind == "oracle" and ignored:
        raise ConfigError(
            "policy=oracle has no checkpoint and no denoise steps; "
            f"drop {', '.join(ignored)} or choose another policy"
        )
    names = {f"runner.{name}" for name in RAY_ONLY}
    of_ray = [text for text in overrides if text.lstrip("+~").partition("=")[0] in names]
    if config.runner.name != "ray" and of_ray:
        raise ConfigError(f"runner={config.runner.name} does not read {', '.join(of_ray)}; add runner=ray")


@dataclass(frozen=True)
class Start:
    """What a process begins with: a new run, or one that earlier processes began.

    Attributes:
        overrides: of this command line; earlier: those that the run began with.
        before: run.json as it was; None for a new run.
    """

    cfg: DictConfig
    overrides: list[str]
    folder: Path
    earlier: list[str] = field(default_factory=list)
    before: Mapping[str, Any] | None = None


def find_start(cfg: DictConfig) -> Start:
    """Return where to start; with `resume=FOLDER` the configuration is composed as that run's was.

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
    refuse_joined(folder, before)
    overrides = [text for text in overrides if not text.startswith("resume=")]
    cfg = compose("config", [*before["overrides"], *overrides])
    refuse_changed(folder, before, {"config": plain(cfg)})
    return Start(cfg, overrides, folder, before["overrides"], before)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration in plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def open_runner(config: Config, tasks: Sequence[Task], left: Sequence[EpisodeKey]) -> Runner:
    """Return the runner that the configuration names, its policy built and the simulator checked.

    Args:
        left: the episodes that it will be given.
    """
    if config.runner.name == "ray":
        try:
            from eval.ray_runner import start_ray
        except ModuleNotFoundError as missing:
            raise RunnerError(f'runner=ray needs Ray ({missing}): pip install -e ".[ray]"') from missing
        return start_ray(config, tasks, left)
    if config.policy.kind != "oracle":
        choose_passes(config)  # what cannot run here says so before a simulator starts
    simulator = prepare()
    return LocalRunner(
        build_policy(config, lambda policy: example_requests(tasks, policy, config.seed)), simulator
    )


def run(cfg: DictConfig) -> None:
    """Do one run, or go on with one, from checks to printed summary; of a finished one, print that alone.

    Raises:
        Refused: before the first episode; nothing was recorded.
        RunFailed: the records are kept and the summary is printed, but the run is no result.
    """
    with ExitStack() as stack:
        try:
            start = find_start(cfg)
            config = check(start.cfg)
            refuse_ignored(config, start.overrides)
            if start.before is None:
                refuse_used(start.folder)
            elif (over := nothing_left(start.folder, start.before)) is not None:
                say(f"nothing is left to run: {counted(len(over.episodes), 'episode')} finished")
                _show(summarise(over), start.folder)
                return
            tasks = choose_tasks(config)
            episodes = choose_episodes(config, tasks)
            tracker = _tracker(config)
            tracker.check()
            earlier = stack.enter_context(reopen(start.folder)) if start.before else None
            left = episodes.left(earlier.done if earlier else ())
            runner = stack.enter_context(closing(open_runner(config, tasks, left)))
            plan = make_plan(config, tasks, episodes, runner, earlier)
            run_info = describe(start, config, plan, runner, earlier)
            tracker.start(tracked_run(start, config, plan, run_info))
        except (*STARTING, OmegaConfBaseException) as error:
            raise Refused(str(error)) from error
        label = policy_label(plan.policy, run_info["config"])
        say(announcement(plan, label, runner.about, start.folder))
        writer = earlier.writer if earlier else stack.enter_context(RunWriter(start.folder))
        if config.record_observations:
            assert isinstance(runner, LocalRunner)
            stack.enter_context(recording(runner, start.folder, config.record_observations))
        books = Bookkeeper(
            plan, writer, tracker, run_info, runner.engagement, earlier.run if earlier else None
        )
        try:
            runner.run(plan, books)
        except BaseException:
            for problem in _close(books):
                complain(problem)
            say(f"go on with it: python -m eval resume={start.folder}")
            raise
        for problem in _close(books):
            raise RunFailed(f"the run ended, but not its bookkeeping: {one_line(problem)}") from problem


def choose_episodes(config: Config, tasks: Sequence[Task]) -> Episodes:
    """Return the episodes that protocol and shard choose.

    Raises:
        ConfigError: the shard has none.
    """
    episodes = Episodes(
        suite=config.suite.name,
        tasks=tuple(task.task_id for task in tasks),
        first=config.protocol.first_episode,
        count=config.protocol.episodes,
        seed=config.seed,
        shard=Shard.parse(config.shard) if config.shard else None,
    )
    if not episodes.keys():
        raise ConfigError(
            f"shard={config.shard} has none of the {len(episodes.whole().keys())} episodes; use fewer shards"
        )
    return episodes


def make_plan(
    config: Config, tasks: Sequence[Task], episodes: Episodes, runner: Runner, earlier: Earlier | None
) -> Plan:
    """Return the plan of a run, or of what is left of it.

    Raises:
        Changed: what is recorded is of another policy, other weights or another simulator.
    """
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
    start: Start, config: Config, plan: Plan, runner: Runner, earlier: Earlier | None
) -> dict[str, Any]:
    """Return what run.json says besides the outcome."""
    gpu = (choose_device(config.policy.device).index or 0) if config.runner.name == "local" else 0
    origin = provenance.collect(gpu)
    now = {
        "config": plain(start.cfg),
        "overrides": [*start.earlier, *start.overrides],
        "runner": runner.facts,
    }
    if earlier is not None:
        return earlier.describe(now, origin)
    return now | {
        "episodes": [plan.episodes.to_dict()],
        "planned_episodes": plan.num_episodes,
        "policy": dict(runner.about),
        "weights_label": runner.about.get("weights_label"),
        "gl_backend": runner.simulator["gl"],
        "simulator": dict(runner.simulator),
        "first_frame_sha256": None,
        "provenance": origin,
        "notes": [],
        "resumed": [],
    }


def tracked_run(start: Start, config: Config, plan: Plan, run_info: Mapping[str, Any]) -> TrackedRun:
    """Return what the tracker is told; a resumed run is one of its own there."""
    name = f"{config.policy.name}-{config.suite.name}-{start.folder.name}"
    tags = list(config.tracking.tags)
    if plan.weights_label:
        name, tags = f"RANDOM-WEIGHTS-{name}", [*tags, "random weights"]
    if start.before is not None:
        tags = [*tags, "resumed"]
    about = {key: value for key, value in run_info.items() if key != "config"}
    return TrackedRun(run_info["config"] | {"run": about}, name, start.folder, config.tracking.group, tags)


def announcement(plan: Plan, policy: str, about: Mapping[str, Any], folder: Path) -> str:
    """Return what a user wants to know before the first episode is over."""
    tasks, shard = len(plan.tasks), plan.episodes.shard
    parts = [
        f"{counted(plan.num_episodes, 'episode')} of {plan.tasks[0].suite} "
        + (
            f"(shard {shard} of {tasks} tasks x {plan.episodes.count})"
            if shard
            else f"({tasks} tasks x {plan.episodes.count})"
        ),
        f"{len(plan.done)} done already" if plan.done else None,
        f"policy {policy}",
        f"checkpoint {plan.checkpoint}" if plan.checkpoint else None,
        plan.weights_label,
        setting(about),
        f"records: {folder}",
    ]
    return " | ".join(part for part in parts if part)


def _close(books: Bookkeeper) -> list[Exception]:
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

    folder = books.writer.folder
    attempt(books.write_run)
    summary = attempt(lambda: _summary(folder))
    attempt(lambda: books.tracker.finish(summary.to_dict() if summary else {}))
    if books.tracker.error:
        attempt(books.write_run)
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
    from eval.wandb_tracker import WandbTracker  # not installed where nothing is tracked

    return SafeTracker(WandbTracker(config.tracking.mode, config.tracking.project, config.tracking.entity))


def main() -> None:
    """Run the command line; `eval.command` says how it ends."""
    command("config", run)
