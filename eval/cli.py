"""The command line: compose, check, run, print the summary."""

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from eval.analysis.summary import summarise
from eval.app.command import CommandError, command
from eval.app.ending import print_summary
from eval.app.heir import heir_command
from eval.app.page import make_page
from eval.app.session import Origin, prepare
from eval.config.compose import check, plain
from eval.config.errors import one_line
from eval.config.multiply import key_of
from eval.config.schema import Config, ConfigError
from eval.config.targets import (
    choice_of_policy,
    naming_lost_choices,
    recorded_tracking,
    refuse_recorded_arguments,
    refuse_recorded_targets,
    repeatable,
    typed_again,
)
from eval.config.tasks import refuse_elsewhere
from eval.records.folders import refuse_full
from eval.records.reader import Run
from eval.records.resume import current_overrides, nothing_left, recorded, refuse_changed, refuse_joined
from eval.render.console import print_info
from eval.runners.base import RunnerError
from eval.runners.recorder import RunFailed
from eval.sim.stack import SimulatorError
from eval.specs.auto import settle
from eval.specs.choose import checked_spec
from eval.tracking.base import NullTracker, SafeTracker, TrackingError
from policies.files import expand_home
from policies.text import pluralize, shell_command, shell_override

# Errors before the first episode, apart from OmegaConf's.
STARTING = (ValueError, OSError, SimulatorError, TrackingError, RunnerError)


# Hydra's names for what `--config-dir` and `hydra.searchpath` add.
TYPED_SOURCES = ("command-line", "hydra.searchpath in command-line")


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
        settled, why = settle(cfg, overrides, lambda words: check(compose("config", list(words))))
        for line in why:
            print_info(line)
        if settled != overrides:
            cfg, overrides = compose("config", settled), settled
        return Start(cfg, overrides, Path(HydraConfig.get().runtime.output_dir))
    if not cfg.resume:
        raise ConfigError("resume must be the folder of a run, got ''; give resume=FOLDER, or leave it out")
    folder = expand_home(cfg.resume)
    before = recorded(folder)
    overrides = [text for text in overrides if key_of(text) != "resume"]
    finished = nothing_left(folder, before)
    if finished is not None and not overrides:  # shown whatever the configuration would be today
        return Start(cfg, overrides, folder, before["overrides"], before, finished)
    refuse_joined(folder, before)
    recorded_overrides = current_overrides(before["overrides"])
    repeated = repeatable(recorded_overrides, overrides)
    with naming_lost_choices(overrides):
        cfg = compose("config", [*repeated, *overrides])
    refuse_recorded_targets(cfg, overrides, config_folders())
    refuse_recorded_arguments([*repeated, *overrides], overrides)
    refuse_changed(folder, before, {"config": plain(cfg)})
    if cfg.tracking.name != "none" and (left_out := recorded_tracking(recorded_overrides)):
        print_info(f"tracking is what this command line says, without the record's {' '.join(left_out)}")
    return Start(cfg, overrides, folder, before["overrides"], before, finished)


def config_folders() -> list[Path]:
    """The folders with YAML that this command line names."""
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.provider in TYPED_SOURCES]


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
                print_summary(summarise(start.finished), start.folder)
                return
            config = check(start.cfg)
            if start.before is not None:
                refuse_elsewhere(config, start.before.get("policy") or {})
            spec = checked_spec(config, start.overrides)
            if start.before is None:
                refuse_full(start.folder)
            # The network's modules take seconds to import; what is refused above needs none of them.
            from eval.runners.open import open_runner

            origin = Origin(plain(start.cfg), start.overrides, start.folder, start.earlier, start.before)
            session = prepare(
                stack,
                config,
                spec,
                origin,
                _tracker(config),
                lambda tasks, left: open_runner(
                    config, spec, tasks, left, start.folder, heir_command(start.folder, go_on(start))
                ),
            )
        except (*STARTING, OmegaConfBaseException) as error:
            raise CommandError(str(error)) from error
        session.announce()
        try:
            problems = session.run(stack)
        except BaseException:
            print_info(f"go on with it: {go_on(start)}")
            raise
        for problem in problems:
            raise RunFailed(f"the run ended, but not its bookkeeping: {one_line(problem)}") from problem


def go_on(start: Start) -> str:
    """The command that goes on with a run, for a shell: with what its record may not say."""
    flags = [word for folder in config_folders() for word in ("--config-dir", shlex.quote(str(folder)))]
    again = typed_again(start.overrides)
    words = map(shlex.quote, [*choice_of_policy([*start.earlier, *start.overrides], again), *again])
    return shell_command("eval", *flags, shell_override("resume", str(start.folder)), *dict.fromkeys(words))


def _tracker(config: Config) -> SafeTracker:
    if config.tracking.name == "none":
        return SafeTracker(NullTracker())
    from eval.tracking.wandb import WandbTracker  # not installed where nothing is tracked

    tracking = config.tracking
    return SafeTracker(WandbTracker(tracking.mode, tracking.project, tracking.entity, make_page))


def main() -> None:
    command("config", run)
