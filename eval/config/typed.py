"""What a user typed: text stays text, `~` is the home, and nothing is ignored."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from eval.config.errors import unknown_key
from eval.config.groups import CONF, options
from eval.config.multiply import choices, is_below, key_of, parse_overrides
from eval.config.schema import Config, ConfigError
from policies.files import expand_home, real_path
from policies.text import quoted

SEVERAL = ("experiment",)  # groups of which several files may be chosen at once
OPEN = ("policy.args",)  # keys that a policy of the user's own names
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # Hydra makes them, so that `~` is expanded here
HYDRA_TEXTS = (*FOLDERS, "hydra.sweep.subdir")
# What Hydra reads of itself: always, and for one job or for several; for the rest of it there is no use here.
ALWAYS = (
    *("hydra.searchpath", "hydra.verbose", "hydra.mode", "hydra.callbacks", "hydra.job.env_set"),
    *("hydra.job_logging", "hydra/job_logging", "hydra.hydra_logging", "hydra/hydra_logging"),
)
ONE_JOB = ("hydra.run.dir",)
GROUPS = ("hydra.launcher", "hydra.sweeper")
JOBS = ("hydra.sweep", "hydra/launcher", "hydra/sweeper", *GROUPS)
_FUNCTION = re.compile(r"[a-z_]+\(.*\)")  # of Hydra: `range(1,3)`, `str(1)`


def types_of(key: str) -> list[Any]:
    """List the types that the schema has under a key with dots, of whichever policy and command."""
    types: list[Any] = [Config]
    for name in key.split("."):
        owners = [owner for kind in types if is_dataclass(kind) for owner in _with_subclasses(kind)]
        types = [
            kind
            for owner in owners
            if (hint := get_type_hints(owner).get(name)) is not None
            for kind in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,))
        ]
    return types


def keep_text(arguments: Sequence[str]) -> list[str]:
    """Quote the values of text keys that Hydra would read as something else, or not at all.

    `tracking.group=1e5` is no number, and `checkpoint.path=~/a=b` is a path. Left as they are: null, what is
    quoted, `${...}`, and the commas between values.

    Raises FileNotFoundError for the home of a user who is not there, in a key of `FOLDERS`.
    """
    return [_keep_text(argument) for argument in arguments]


def refuse_unread(arguments: Sequence[str], *, several_jobs: bool, has_folder: bool) -> None:
    """Refuse what `refuse_empty` does, and keys of Hydra itself that a command does not read.

    Args:
        several_jobs: whether they are for `-m`.
        has_folder: whether the command records into Hydra's folder.

    Raises ConfigError, naming the key and the way out.
    """
    refuse_empty(arguments)
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if is_below(key, ["hydra"]):
            _refuse_hydra(key, _unquoted(value), several_jobs=several_jobs, has_folder=has_folder)


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an override without a key or a choice: `=3`, `~seed`, `suite=null`, `suite=3`."""
    for argument in arguments:
        key = key_of(argument)
        if not key:
            raise ConfigError(f"{argument!r} has no key; write key=value")
        if argument.startswith("~") and not is_below(key, OPEN):
            raise ConfigError(f"{argument} would remove a key that is needed; give it a value: {key}=...")
        if "." not in key and (CONF / key).is_dir():
            _refuse_no_name(key, argument)


def _refuse_no_name(group: str, argument: str) -> None:
    """Raise ConfigError where a group's choice is no name: Hydra stumbles, or takes the last of a list."""
    try:
        overrides = parse_overrides([argument])
        overrides = [each for override in overrides for each in parse_overrides(choices(override))]
    except HydraException:
        return  # Hydra says what it cannot read
    for override in overrides:
        value = override.value()
        names = value if isinstance(value, list) and group in SEVERAL else [value]
        if not all(isinstance(name, str) and name for name in names):
            text = argument.partition("=")[2]
            raise ConfigError(f"{group} must be one of {', '.join(options(group))}, got {text}")


def refuse_unknown(cfg: DictConfig, where: str = "") -> None:
    """Refuse keys that a plus or a YAML added to the schema, and numbers that are none.

    Raises ConfigError for a key that its dataclass lacks, and for a float that is not finite.
    """
    kind = OmegaConf.get_type(cfg)
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    for name in map(str, cfg):
        key = f"{where}.{name}" if where else name
        if known is not None and name not in known:
            raise ConfigError(unknown_key(key, cfg))
        if OmegaConf.is_missing(cfg, name) or is_below(key, OPEN):
            continue
        value = cfg[name]
        if isinstance(value, DictConfig):
            refuse_unknown(value, key)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number, got {value}")


def _refuse_hydra(key: str, value: str, *, several_jobs: bool, has_folder: bool) -> None:
    if is_below(key, JOBS) and not several_jobs:
        raise ConfigError(f"{key} is read with -m alone; add -m, or leave it out")
    if key in GROUPS:
        raise ConfigError(f"{key} is chosen with a slash, as in {key.replace('.', '/')}={value or 'NAME'}")
    if is_below(key, ONE_JOB) and several_jobs:
        raise ConfigError(f"{key} is not read with -m; the folder is then hydra.sweep.dir=FOLDER")
    reads = (*ALWAYS, *(JOBS if several_jobs else ONE_JOB if has_folder else ()))
    if not is_below(key, reads):
        raise ConfigError(f"{key} is not read here; leave it out (of Hydra's keys: {', '.join(reads)})")
    if key in FOLDERS and (not value or real_path(value) == Path.cwd()):
        raise ConfigError(f"{key} must be a new folder, got {value!r}; name one, or leave it out")


def _with_subclasses(kind: Any) -> Iterator[Any]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_subclasses(below)


def _keep_text(argument: str) -> str:
    prefixed, equals, value = argument.partition("=")
    key = key_of(argument)
    if not equals or not _is_text(key):
        return argument
    if key in FOLDERS and (path := _unquoted(value)).startswith("~"):
        return quoted(prefixed, str(expand_home(path)))
    return f"{prefixed}={_quote_each(value)}"


def _unquoted(value: str) -> str:
    quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quotes else value.strip()


def _is_text(key: str) -> bool:
    return key in HYDRA_TEXTS or any(kind is str or get_args(kind) == (str,) for kind in types_of(key))


def _quote_each(values: str) -> str:
    return ",".join(_quote(value) for value in _split(values))


def _quote(value: str) -> str:
    """Quote a value, or what a list holds, where Hydra would not read it as text."""
    text = value.strip()
    if not text or text[0] in "'\"" or "${" in text or text.lower() == "null" or _FUNCTION.fullmatch(text):
        return text
    if text[0] == "[" and text[-1] == "]":
        return f"[{_quote_each(text[1:-1])}]"
    try:
        [override] = parse_overrides([f"x={text}"])
        is_text = not isinstance(override.value(), bool | int | float)
    except HydraException:
        is_text = False
    return text if is_text else quoted("", text)[1:]


def _split(values: str) -> list[str]:
    """Split at the commas that stand in no quotes, brackets or escapes."""
    pieces, depth, quote, escaped = [""], 0, "", False
    for letter in values:
        if letter == "," and not (depth or quote or escaped):
            pieces.append("")
            continue
        pieces[-1] += letter
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[({") - (letter in "])}")
    return pieces
