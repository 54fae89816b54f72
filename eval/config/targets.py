"""What a record may choose when its configuration is composed again: data, not code, machines or secrets."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from eval.config.groups import CONF
from eval.config.multiply import choices, is_below, key_of, parse_overrides
from eval.config.schema import ConfigError
from eval.records.overrides import refuse_lookups

TARGET = "_target_"
OF_INSTANTIATE = re.compile(r"_[a-z]+_")  # `_target_`, `_args_`, `_partial_` and what Hydra may add
# Where observations, pickles of Ray or a variable of the environment would go, and who would answer.
OUTSIDE = ("runner.address", "policy.url", "policy.api_key_env")
ARGS = "policy.args"  # keywords of code that the project does not know
TRACKING = "tracking"
NO_TRACKING = "tracking=none"


def repeatable(recorded: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Choose the overrides of a record with which its configuration is composed again.

    Left out are tracking, unless it was none: where a mirror goes, this command line says; and arguments of
    a policy that `typed` gives again, so that a mapping of the record's is replaced and not merged.

    Args:
        typed: the overrides of this command line, which come after.

    Raises ConfigError for an override that is no plain choice or value, unless `typed` has its key.
    """
    keys = {key_of(text) for text in typed}
    kept = []
    for text in recorded:
        if says_tracking(text) or (is_argument(text) and key_of(text) in keys):
            continue
        try:
            refuse_lookups([text])
        except ValueError as error:
            if key_of(text) in keys:
                continue
            raise ConfigError(str(error)) from error
        kept.append(text)
    return kept


def is_guarded(override: str) -> bool:
    """Whether a record may not set this: code, who is spoken to, or a policy's argument (`is_argument`)."""
    key = key_of(override)
    return bool(OF_INSTANTIATE.fullmatch(_name(key))) or key in OUTSIDE or is_argument(override)


def is_argument(override: str) -> bool:
    """Whether an override gives a policy an argument that may name weights or code, or lift a guard.

    A number, or a list of numbers, for a keyword does neither. Text, true, false and null may, as may the
    keys of a mapping and a keyword that is taken away.
    """
    key = key_of(override)
    if not is_below(key, [ARGS]):
        return False
    if key.count(".") != ARGS.count(".") + 1 or override.startswith("~"):
        return True
    try:
        [parsed] = parse_overrides([override])
        values = [each.value() for each in parse_overrides(choices(parsed))]
    except (HydraException, ConfigError):
        return True
    return not all(_is_numbers(value) for value in values)


def says_tracking(override: str) -> bool:
    """Whether an override says where a mirror goes, or how; that there is none says neither."""
    return is_below(key_of(override), [TRACKING]) and override != NO_TRACKING


def typed_again(overrides: Iterable[str]) -> list[str]:
    """List the overrides that must be typed again when a run or a sweep is resumed."""
    return [text for text in dict.fromkeys(overrides) if is_guarded(text) or says_tracking(text)]


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


def refuse_recorded_arguments(overrides: Sequence[str], typed: Sequence[str]) -> None:
    """Refuse arguments of a policy that only a record gives (`is_argument`).

    Args:
        overrides: what is composed, with `typed` in it.
        typed: the overrides of this command line.

    Raises ConfigError with everything that must be typed again.
    """
    alone = [text for text in dict.fromkeys(overrides) if is_argument(text) and text not in typed]
    if alone:
        policy = choice_of_policy(overrides, alone)[-1:]
        again = " ".join(map(shlex.quote, [*(text for text in policy if text not in typed), *alone]))
        stands = "stands" if len(alone) == 1 else "stand"
        raise ConfigError(
            f"{', '.join(alone)} {stands} in the record alone, and a record gives a policy no arguments "
            "but numbers: others may name weights or code; if you trust it, name it on this command line: "
            f"{again}"
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


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_numbers(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)
