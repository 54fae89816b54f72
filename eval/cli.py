"""The command line: Hydra composes, everything is checked, the runner runs, the summary is printed."""

import os
import sys
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.text import Text

from eval import provenance, schema
from eval.build import build_policy
from eval.libero_env import Task, load_tasks
from eval.messages import one_line
from eval.metrics import summarise
from eval.records import RecordingError, RunWriter, Seeding, refuse_used
from eval.run_reader import read_run
from eval.runner import LocalRunner, Plan, RunFailed
from eval.schema import Config, ConfigError
from eval.sim_stack import SimStackError, prepare
from eval.summary import render, report_console
from eval.tracking import NullTracker, SafeTracker, TrackedRun, TrackingError
from eval.video import VideoMode

CONF = str(
    Path(__file__).resolve().parents[1] / "conf"
)  # Hydra finds a relative path only from the caller's file


class Refused(RuntimeError):
    """The run could not start; the message is one readable line."""


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
    ids = (
        config.suite.tasks
        if config.suite.tasks is not None
        else range(len(tasks))[: config.protocol.num_tasks]
    )
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


def run(cfg: DictConfig) -> None:
    """Do one run into Hydra's output folder, from checks to printed summary.

    Raises:
        Refused: before the first episode; nothing was recorded.
        RunFailed: the records are kept and the summary is printed, but the run is no result.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = check(cfg)
        refuse_used(folder)
        tasks = choose_tasks(config)
        stack = prepare()
        policy = build_policy(config)
        tracker = _tracker(config)
    except (ValueError, OSError, SimStackError, OmegaConfBaseException) as error:
        raise Refused(str(error)) from error

    about = policy.provenance()
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
        checkpoint=about.get("checkpoint"),
        checkpoint_sha256=about.get("weights_sha256"),
    )
    composed = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    run_info: dict[str, Any] = {
        "overrides": list(HydraConfig.get().overrides.task),
        "planned_episodes": plan.num_episodes,
        "policy": about,
        "weights_label": about.get("weights_label"),
        "gl_backend": stack["gl"],
        "simulator": stack,
        "first_frame_sha256": None,
        "provenance": provenance.collect(),
    }
    name = f"{config.policy.name}-{config.suite.name}-{folder.name}"
    try:
        tracker.start(
            TrackedRun(
                composed | {"run": run_info}, name, folder, config.tracking.group, config.tracking.tags
            )
        )
    except TrackingError as error:
        raise Refused(str(error)) from error
    with RunWriter(folder) as writer:
        runner = LocalRunner(plan, policy, writer, tracker, {"config": composed} | run_info)
        try:
            runner.run()
        finally:
            _close(runner)


def _close(runner: LocalRunner) -> None:
    """Write run.json, mirror and print the summary of whatever was recorded."""
    runner.write_run()
    folder = runner.writer.folder
    records = read_run(folder)
    summary = summarise(records) if records.episodes else None
    runner.tracker.finish(summary.to_dict() if summary else {})
    if runner.tracker.error:
        runner.write_run()
        summary = summarise(read_run(folder)) if summary else None
    if summary:
        report_console().print(render(summary))
    report_console().print(Text(f"records: {folder}"), soft_wrap=True)


def _tracker(config: Config) -> SafeTracker:
    if config.tracking.name == "none":
        return SafeTracker(NullTracker())
    from eval.wandb_tracker import WandbTracker  # not installed where nothing is tracked

    return SafeTracker(WandbTracker(config.tracking.mode, config.tracking.project, config.tracking.entity))


def main() -> None:
    """Run the command line; user errors are one line and exit status 1, HYDRA_FULL_ERROR=1 shows the whole
    trace."""
    schema.register()
    full_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit by itself
    failed = []

    def job(cfg: DictConfig) -> None:
        try:
            run(cfg)
        except (Refused, RunFailed, RecordingError, OSError) as error:
            if full_trace:
                raise
            _complain(error)
            failed.append(error)  # the other jobs of a sweep go on

    try:
        hydra.main(config_path=CONF, config_name="config", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException, OSError) as error:
        if full_trace:
            raise
        _complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        report_console(stderr=True).print(Text("interrupted; what was recorded is kept"))
        sys.exit(130)
    if failed:
        sys.exit(1)


def _complain(error: Exception) -> None:
    report_console(stderr=True).print(Text(f"error: {one_line(error)}"), soft_wrap=True)
