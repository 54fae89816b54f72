"""Reword Hydra's and OmegaConf's errors as one line that names the key, the value and the way out.

Non-obvious behaviors:
    Regular expressions match the English of the two libraries. pyproject.toml therefore pins hydra-core below
    1.4 and omegaconf below 2.4, and tests/eval/test_bad_input.py has a test for each message: run it before
    raising a pin.
"""

import difflib
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_origin, get_type_hints

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from eval.config.groups import backend_name, backends
from policies.pi05.dims import STAGES
from policies.text import shell_override, visible

KEY = re.compile(r"\+{0,2}[A-Za-z_][\w.-]*")  # of a value: `+` and `++` may stand before it
# Hydra's message for several values where there is no sweep.
SEVERAL = r"(?:Ambiguous value for argument|Sweep parameters) '([^=]*)=(.*?)'(?: requires --multirun$|; 1\.)"
# OmegaConf's messages for a value of the wrong type, and ours.
PLAINER = (
    (r"Value '(.*)' of type '.*' could not be converted to Integer", r"must be a whole number, got '\1'"),
    (r"Value '(.*)' is not a valid bool.*", r"must be true or false, got '\1'"),
    (r"Cannot (?:assign|merge) .*(?:Dict\[|DictConfig).*", "must be a mapping, as in +policy.args.size=3"),
    (r"Cannot convert '.*' to string: '(.*)'", r"must be text, got \1"),
    (r"Invalid value assigned: (\w+) is not a ListConfig.*", r"must be a list, as in [0,3], got \1"),
    (r"field '.*' is not Optional", "must have a value, got null"),
)


def one_line(error: BaseException) -> str:
    """Word an error on one line; where Hydra wraps an error of OmegaConf, that one is worded."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.options is not None:
        options = ", ".join(option for option in error.options if not option.startswith("_"))
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group} must be one of {options}, got {name!r}"
    if isinstance(error, OverrideParseException):
        reason = _head(error).partition("; ")[2].partition("; See ")[0]
        return f"cannot read the override {error.override!r} ({reason}); {_readable(str(error.override))}"
    if isinstance(error, ConfigCompositionException) and (several := re.match(SEVERAL, _head(error))):
        return _several_values(several[1], several[2])
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return unknown_key(str(cause.full_key), cause.parent_node)
    if isinstance(cause, InterpolationToMissingValueError):
        missing = _head(cause).rpartition(" ")[2]
        return f"{missing} has no value; give one with {missing}=..."
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} has no value; give one with {cause.full_key}=..."
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key} {_plainer(_head(cause))}"
    return _head(error)


def _head(error: BaseException) -> str:
    """Join the lines of a message that come before OmegaConf's list of node properties."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line for line in lines if line and not re.match(r"(full_key|object_type|reference_type)[:=]", line)
    ]
    return "; ".join(kept)


def _readable(override: str) -> str:
    """Say how to write an override that Hydra cannot read."""
    key, equals, value = override.partition("=")
    if equals and value and KEY.fullmatch(key) and value[0] not in "[{'\"":
        return f"if the value is text, write {visible(shell_override(key, value))}"
    return "write key=value"


def _plainer(message: str) -> str:
    for pattern, plainer in PLAINER:
        if re.fullmatch(pattern, message):
            return re.sub(pattern, plainer, message)
    return f"cannot be used: {message}"


def _several_values(key: str, values: str) -> str:
    if _is_list(key):
        return f"{key} must be a list, got {values}; write {key}=[{values}]"
    return f"{key} must be one value, got {values}; add -m to run them one after another"


def _is_list(key: str) -> bool:
    """Whether the schema has a list under this key with dots."""
    from eval.config.typed import types_of  # a tenth of a second, for this message alone

    return any(get_origin(kind) is list for kind in types_of(key))


def unknown_key(key: str, parent_node: Any) -> str:
    """Word that `parent_node` of the configuration has no such key; `key` has dots."""
    parent, _, name = key.rpartition(".")
    of_a_stage = parent.removeprefix("optim.")
    if of_a_stage in STAGES and isinstance(parent_node, DictConfig):
        elsewhere = _other_backends(of_a_stage, name, parent_node)
        if elsewhere is not None:
            return elsewhere
    if parent == "policy" and (example := _policy_with(name)) is not None:
        return f"{key} is no option of this policy; choose one that has it, as policy={example}"
    if parent == "policy.args":
        return f"unknown key {key}; add it with a plus, as in +{key}=..."
    known = _known(parent_node)
    close = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {parent + '.' if parent else ''}{close[0]}?"
        if close
        else f"known keys: {', '.join(known) or 'none'}"
    )
    return f"unknown key {key}; {hint}"


def _known(node: Any) -> list[str]:
    """The keys of a node of the schema; those that are there where it has none."""
    if not isinstance(node, DictConfig):
        return []
    kind = OmegaConf.get_type(node)
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    return [str(name) for name in node if name != "_target_"]  # a backend's, which a slash chooses


def _policy_with(option: str) -> str | None:
    """Name a policy that has this option; None if no policy has it."""
    from eval.config.schema import PolicyConfig  # as above

    having = (kind for kind in PolicyConfig.__subclasses__() if option in get_type_hints(kind))
    return next((kind.example for kind in having), None)


def _other_backends(stage: str, option: str, chosen: DictConfig) -> str | None:
    """Name the other backends of a stage that have this option; None if no backend has it."""
    having = [f"optim/{stage}={name}" for name, options in backends(stage).items() if option in options]
    if not having:
        return None
    now = (
        f"optim/{stage}={backend_name(stage, chosen)}" if "_target_" in chosen else "a policy without stages"
    )
    add = f"add {having[0]}" if len(having) == 1 else "add one of them"
    return f"optim.{stage}.{option} is an option of {', '.join(having)}, not of {now}; {add}"
