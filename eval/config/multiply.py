"""Overrides: parse them, and multiply lists: `policy=a,b denoise.steps=10,3` is four runs."""

from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from eval.config.schema import ConfigError
from policies.text import quoted as quoted


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Parse a command line; HydraException where Hydra does not understand an argument."""
    return list(OverridesParser.create().parse_overrides(list(arguments)))


def key_of(override: Override | str) -> str:
    """An override's key: `optim/vision` of `+optim/vision=eager`."""
    text = override if isinstance(override, str) else override.get_key_element()
    return text.lstrip("+~").partition("=")[0]


def is_below(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of `names` or below one: `runner`, `runner.workers` and `runner/x` of `runner`."""
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in names)


def choices(override: Override) -> list[str]:
    """List an override for each value of its list; an override with one value stays as it is.

    Raises ConfigError for a range or a glob, whose values nobody listed.
    """
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{key_of(override)} must be one value or a list of values, got {override.input_line!r}"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def refuse_hydra(override: Override, command: str, instead: str) -> None:
    """Raise ConfigError for a key of Hydra itself, which `command` ignores; `instead` sets its folder."""
    key = key_of(override)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{key} is not read by {command}; its folder is {instead}")
