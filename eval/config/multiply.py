"""Overrides: parse them, and multiply lists: `policy=a,b denoise.steps=10,3` is four runs."""

import re
import sys
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from eval.config.schema import ConfigError

MOST_WORDS = 80  # characters that a folder's name has of what was varied
IN_NAMES = (
    "policy",
    "denoise.steps",
    "hydra",
    "tracking",
    "video",
    "runner",
)  # named already, or of one machine


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


def swept_words(overrides: Iterable[str], typed: Sequence[str] | None = None) -> str:
    """Word for a folder's name what a sweep varies besides the policy and its steps: `_seed=7_tasks=[0]`.

    Args:
        overrides: of one job.
        typed: the command line, this process's by default; what stands in it as it is was not varied.
    """
    fixed = set(sys.argv[1:] if typed is None else typed)
    varied = [text for text in overrides if text not in fixed and not is_below(key_of(text), IN_NAMES)]
    words = (f"_{key_of(text).rpartition('.')[2]}={text.partition('=')[2]}" for text in varied)
    return re.sub(r"[^A-Za-z0-9_.,=\[\]-]", "-", "".join(words))[:MOST_WORDS]


OmegaConf.register_new_resolver("swept_words", swept_words, replace=True)
