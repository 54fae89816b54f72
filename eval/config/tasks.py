"""Turn a composed configuration into checked dataclasses, tasks and episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.config.groups import load_yaml, options
from eval.config.origins import trained_suites
from eval.config.schema import RAY_ONLY, Config, ConfigError, TimedClockConfig
from eval.records.episodes import Episodes, Shard
from eval.sim.plus import BAD
from eval.sim.suites import SuiteName
from eval.sim.tasks import Task, load_tasks
from policies.files import expand_home, read_json_object
from policies.pi05.settings import resolve
from policies.text import shorten


def choose_tasks(config: Config) -> list[Task]:
    """Load what suite and protocol choose; ConfigError for a task or episode that the suite lacks."""
    suite = config.suite
    every = load_tasks(
        suite.name, instruction=suite.instruction, round_camera=suite.round_camera is not False
    )
    tasks = {task.task_id: task for task in every if suite.level in (None, task.level)}
    number = config.protocol.num_tasks
    if number is not None and number > len(tasks):
        raise ConfigError(
            f"protocol.num_tasks must be <= {len(tasks)} for {suite.name}, or null for all, got {number}"
        )
    ids = suite.tasks if suite.tasks is not None else list(tasks)[:number]
    missing = [i for i in ids if i not in tasks]
    if missing:
        raise ConfigError(f"suite.tasks must be {_spell_ids(list(tasks))} for {suite.name}, got {missing}")
    last = config.protocol.first_episode + config.protocol.episodes - 1
    for i in ids:
        states = len(tasks[i].init_states)
        if last >= states:
            raise ConfigError(
                f"protocol.first_episode + protocol.episodes must be <= {states}, the official initial "
                f"states of {suite.name} task {i}, "
                f"got {config.protocol.first_episode} + {config.protocol.episodes}"
            )
    return [tasks[i] for i in ids]


def _spell_ids(ids: Sequence[int]) -> str:
    """Name the ids of a suite's tasks, which in LIBERO-Plus's have gaps."""
    if list(ids) == list(range(len(ids))):
        return f"0 to {len(ids) - 1}"
    return f"of {shorten(ids)}, the ids of LIBERO-Plus"


def refuse_ignored(config: Config, overrides: Sequence[str], *, has_stages: bool) -> None:
    """Raise ConfigError for overrides that the chosen policy or runner would ignore."""
    ignored = [text for text in overrides if text.lstrip("+~").startswith(("checkpoint", "denoise", "optim"))]
    if ignored and not has_stages:
        raise ConfigError(
            f"policy={config.policy.name} has no stages, checkpoint or denoise steps of ours; "
            f"drop {', '.join(ignored)} or choose another policy"
        )
    names = {f"runner.{name}" for name in RAY_ONLY}
    of_ray = [text for text in overrides if text.lstrip("+~").partition("=")[0] in names]
    if config.runner.name != "ray" and of_ray:
        raise ConfigError(f"runner={config.runner.name} does not read {', '.join(of_ray)}; add runner=ray")
    mode = [text for text in overrides if text.startswith("tracking.mode=")]
    if config.tracking.name == "none" and mode:
        raise ConfigError(f"tracking=none does not read {mode[0]}; drop one of them")


def refuse_elsewhere(config: Config, policy: Mapping[str, Any]) -> None:
    """Raise ConfigError for a relative path of a resumed run that leads nowhere from this folder.

    Where it leads somewhere, hashes tell whether that is the same (`eval.records.resume.refuse_changed`).

    Args:
        policy: as run.json has it. Its label is the folder of the weights, in the hub's cache for an id.
    """
    checkpoint = config.checkpoint
    paths = {f"checkpoint.{key}": getattr(checkpoint, key) for key in ("path", "tokenizer", "norm_stats")}
    paths |= {"optim.scales": config.optim.scales, "against": config.against}
    if isinstance(config.clock, TimedClockConfig):
        paths["clock.latency_from"] = config.clock.latency_from
    if checkpoint.layout == "lerobot" and policy.get("weights_label") != str(Path(str(checkpoint.path))):
        del paths["checkpoint.path"]  # was the id of a hub
    for key, path in paths.items():
        if path is None or Path(path).is_absolute() or expand_home(path).exists():
            continue
        raise ConfigError(
            f"{key}={path} of the run is relative, and leads nowhere from {Path.cwd()}; change to the folder "
            "that the run was begun in, and resume it from there"
        )


def check_folder(config: Config) -> None:
    """Read what a lerobot folder on this machine says; ValueError or OSError as in `resolve`."""
    checkpoint = config.checkpoint
    if checkpoint.layout != "lerobot":
        return
    folder = expand_home(str(checkpoint.path))
    path = folder / "config.json"
    if path.is_file():
        resolve(replace(checkpoint, denoise_steps=config.denoise.steps), folder, read_json_object(path))


def warnings_of(config: Config, *, has_stages: bool) -> list[str]:
    """Say what makes the success of a run another than that of the suite and the policy as they are."""
    warnings = (
        _warn_of_suite(config) if has_stages else None,
        _warn_of_steps(config),
        _warn_of_instruction(config),
        _warn_of_bad(config),
    )
    return [warning for warning in warnings if warning is not None]


def _warn_of_steps(config: Config) -> str | None:
    base = SuiteName.parse(config.suite.name).base
    if base not in options("suite"):  # of the installed package's, for which nobody published a limit
        return None
    own = load_yaml("suite", base)["max_steps"]
    if config.suite.max_steps == own:
        return None
    return (
        f"suite.max_steps={config.suite.max_steps}, not the {own} of {config.suite.name}: "
        "success is not comparable with that of others"
    )


def instruction_source(config: Config) -> str:
    """Name where a run's instructions come from, of `eval.sim.suites.SOURCES`."""
    return config.suite.instruction or SuiteName.parse(config.suite.name).source


def _warn_of_instruction(config: Config) -> str | None:
    own, source = SuiteName.parse(config.suite.name).source, instruction_source(config)
    if source == own:
        return None
    return (
        f"suite.instruction={source}, not the {own} that {config.suite.name} is for: "
        "success compares with runs that did likewise"
    )


def _warn_of_bad(config: Config) -> str | None:
    suite = SuiteName.parse(config.suite.name)
    bad = {i: why for (base, i), why in BAD.items() if suite.is_plus and base == suite.base}
    if suite.table != "language" or not bad:
        return None
    return "left out of " + config.suite.name + ": " + "; ".join(f"task {i}, {why}" for i, why in bad.items())


def _warn_of_suite(config: Config) -> str | None:
    """Say that the checkpoint was trained for other suites, where that is known; None where nothing is."""
    suites = trained_suites(config.checkpoint)
    if suites is None or config.suite.name in suites:
        return None
    return (
        f"checkpoint={config.checkpoint.name} was trained for {', '.join(suites)}, "
        f"not for {config.suite.name}; a low success there is no fault of the policy's backends"
    )


def choose_episodes(config: Config, tasks: Sequence[Task]) -> Episodes:
    """Plan the episodes that protocol and shard choose; ConfigError where the shard has none."""
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
