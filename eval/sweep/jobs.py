"""Read a sweep's command line, whose lists of values multiply: one job for each combination.

`policy=a,b denoise.steps=10,3` is four jobs, the last list varying fastest. An experiment brings lists of its
own in `hydra.sweeper.params`; the command line replaces those of the same key.
"""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from eval.config import schema
from eval.config.compose import check, search_path
from eval.config.groups import CONF, options
from eval.config.multiply import choices, key_of, parse_overrides, refuse_hydra, swept_words
from eval.config.schema import ConfigError, steps_word
from eval.config.typed import keep_text, refuse_empty
from policies.text import shell_command

CHOSEN_HERE = ("resume", "shard")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    folder: str  # in the sweep's folder: number, policy, denoise steps, and what else is varied
    overrides: tuple[str, ...]
    swept: tuple[str, ...]  # the overrides that tell it from the other jobs

    @property
    def label(self) -> str:
        return " ".join(self.swept) or "the only job"


def read_jobs(
    arguments: Sequence[str], *, one_at_a_time: bool = False, folders: Sequence[Path] = ()
) -> list[Job]:
    """Compose and check every job of a command line.

    Args:
        one_at_a_time: instead of every combination, the first value of each list; then each other value by
            itself; then the last value of each list together.
        folders: with YAML of the user's own, as `--config-dir` names one.

    Raises:
        HydraException, OmegaConfBaseException: an argument that Hydra does not understand.
        ConfigError: a value that is not allowed.
        FileNotFoundError: one of `folders` is not there.
    """
    schema.register()
    refuse_empty(arguments)
    typed = parse_overrides(keep_text(arguments))
    for override in typed:
        _refuse(override)
    search = search_path(folders)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        fixed = [str(override.input_line) for override in typed if not override.is_sweep_override()]
        named = {key_of(override) for override in typed}
        brought = [
            override
            for override in parse_overrides(keep_text(_params([*search, *fixed])))
            if key_of(override) not in named and str(override.input_line) not in fixed
        ]
        fixed += [str(override.input_line) for override in brought if not override.is_sweep_override()]
        lists = [choices(override) for override in (*brought, *typed) if override.is_sweep_override()]
        for override in brought:
            _refuse(override)
        chosen = _one_at_a_time(lists) if one_at_a_time else itertools.product(*lists)
        return [_job(number, search, fixed, swept) for number, swept in enumerate(chosen)]


def experiments() -> list[str]:
    """List the overrides that choose an experiment with lists."""
    return [
        f"+experiment={name}"
        for name in options("experiment")
        if OmegaConf.select(OmegaConf.load(Path(CONF, "experiment", f"{name}.yaml")), "hydra.sweeper.params")
    ]


def _params(fixed: Sequence[str]) -> list[str]:
    """The lists that the experiment of a command line brings."""
    experiments = [text for text in fixed if key_of(text) in ("experiment", "hydra.searchpath")]
    cfg = compose("config", experiments, return_hydra_config=True)
    params: Mapping[str, Any] = cfg.hydra.sweeper.params or {}
    return [f"{key}={value}" for key, value in params.items()]


def _refuse(override: Override) -> None:
    refuse_hydra(override, "a sweep", "--out FOLDER")
    key = key_of(override)
    if key in CHOSEN_HERE:
        go_on = shell_command("eval.sweep", "--resume", "FOLDER")
        raise ConfigError(f"{key} belongs to one run; to go on with a sweep: {go_on}")


def _one_at_a_time(lists: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    first = tuple(values[0] for values in lists)
    last = tuple(values[-1] for values in lists)
    between = [(*first[:i], value, *first[i + 1 :]) for i, values in enumerate(lists) for value in values[1:]]
    yield from dict.fromkeys((first, *between, last))


def _job(number: int, search: Sequence[str], fixed: Sequence[str], swept: Sequence[str]) -> Job:
    overrides = (*fixed, *swept)
    try:
        config = check(compose("config", [*search, *overrides]))
    except ConfigError as error:
        raise ConfigError(f"job {shlex.join(swept)}: {error}") from error
    steps = steps_word(config.denoise.steps)
    folder = f"{number}_{config.policy.name}_steps{steps}{swept_words(swept, typed=())}"
    return Job(folder, overrides, tuple(swept))
