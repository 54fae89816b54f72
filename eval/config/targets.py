"""What a record may choose when its configuration is composed again: data, not code, machines or secrets."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from eval.config.groups import CONF
from eval.config.multiply import is_below, key_of
from eval.config.schema import ConfigError
from eval.records.overrides import refuse_lookups

TARGET = "_target_"
OF_INSTANTIATE = re.compile(r"_[a-z]+_")  # `_target_`, `_args_`, `_partial_` and what Hydra may add
# Where observations, pickles of Ray or a variable of the environment would go, and who would answer.
OUTSIDE = ("runner.address", "policy.url", "policy.api_key_env")
TRACKING = "tracking"
NO_TRACKING = "tracking=none"


def repeatable(recorded: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Choose the overrides of a record with which its configuration is composed again.

    Tracking is left out, unless it was none: where a mirror goes, this command line says.

    Args:
        typed: the overrides of this command line, which come after.

    Raises ConfigError for an override that is no plain choice or value, unless `typed` has its key.
    """
    keys = {key_of(text) for text in typed}
    kept = []
    for text in recorded:
        if says_tracking(text):
            continue
        try:
            refuse_lookups([text])
        except ValueError as error:
            if key_of(text) in keys:
                continue
            raise ConfigError(str(error)) from error
        kept.append(text)
    return kept


def is_guarded(key: str) -> bool:
    """Whether a record may not set this key: it names code, or who is spoken to."""
    return bool(OF_INSTANTIATE.fullmatch(_name(key))) or key in OUTSIDE


def says_tracking(override: str) -> bool:
    """Whether an override says where a mirror goes, or how; that there is none says neither."""
    return is_below(key_of(override), [TRACKING]) and override != NO_TRACKING


def typed_again(overrides: Iterable[str]) -> list[str]:
    """List the overrides that must be typed again when a run or a sweep is resumed."""
    return [text for text in dict.fromkeys(overrides) if is_guarded(key_of(text)) or says_tracking(text)]


def choice_of_policy(overrides: Sequence[str], again: Iterable[str]) -> list[str]:
    """List the `policy=` of these overrides where `again` has keys of one policy alone, as `policy.url`.

    Hydra composes the command line of `resume=` before the record is read.
    """
    own = any(is_below(key_of(text), ["policy"]) and _name(key_of(text)) != TARGET for text in again)
    chosen = [text for text in overrides if key_of(text) == "policy"]
    return chosen if own else []


def recorded_tracking(recorded: Sequence[str]) -> list[str]:
    """List the overrides that `repeatable` leaves out because this command line says where a mirror goes."""
    return [text for text in recorded if says_tracking(text)]


def refuse_recorded_targets(cfg: DictConfig, overrides: Sequence[str], folders: Iterable[Path] = ()) -> None:
    """Refuse to import what only a record names, and to speak to whom only a record names.

    Args:
        cfg: was composed from a record's overrides and those of this command line.
        overrides: of this command line alone.
        folders: of `--config-dir`.

    Raises:
        ConfigError: a `_target_`, another key of Hydra's `instantiate`, or one of `OUTSIDE` has a value that
            stands in no YAML of conf/ or of `folders`, and no override names the key.
    """
    known = {pair for folder in (CONF, *folders) for pair in _guarded_of_folder(folder)}
    typed = {key_of(text) for text in overrides}
    for key, value in _guarded(OmegaConf.to_container(cfg, resolve=True), ""):
        if key not in typed and (_name(key), value) not in known:
            choose = "choose code" if OF_INSTANTIATE.fullmatch(_name(key)) else "say who is spoken to"
            raise ConfigError(
                f"{key}={value} stands in the record alone, and a record is not allowed to {choose}; if "
                f"you trust it, name it on this command line: {key}={value}"
            )


@contextmanager
def naming_lost_choices(typed: Sequence[str]) -> Iterator[None]:
    """Compose from a record inside; ConfigError for a choice of the record's whose YAML is in no folder.

    Args:
        typed: the overrides of this command line, whose choices are left to Hydra's own error.
    """
    try:
        yield
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if error.options is None or group in {key_of(text) for text in typed}:
            raise
        raise ConfigError(
            f"{group}={name} stands in the record, and there is no {group}/{name}.yaml in conf/; eval and "
            "eval.sweep take --config-dir FOLDER, with the folder that has it, as when the run began"
        ) from error


def _guarded_of_folder(folder: Path) -> Iterator[tuple[str, str]]:
    for file in folder.rglob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(file))
        yield from ((_name(key), value) for key, value in _guarded(content, ""))
        if isinstance(content, dict):
            names = [_name(key) for key in OUTSIDE]
            yield from ((name, str(content[name])) for name in names if content.get(name) is not None)


def _guarded(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield key and value of each that a record may not set, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            key = f"{where}.{name}" if where else str(name)
            if OF_INSTANTIATE.fullmatch(str(name)) or (key in OUTSIDE and item is not None):
                yield key, str(item)
            else:
                yield from _guarded(item, key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _guarded(item, f"{where}[{i}]")


def _name(key: str) -> str:
    return key.rpartition(".")[2]
