"""Which `_target_` of a recorded configuration may be imported: a record is data, not code."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eval.config.groups import CONF
from eval.config.multiply import key_of
from eval.config.schema import ConfigError

KEY = "_target_"


def refuse_recorded_targets(cfg: DictConfig, overrides: Sequence[str], folders: Iterable[Path] = ()) -> None:
    """Refuse to import what only a record names.

    Args:
        cfg: was composed from a record's overrides and those of this command line.
        overrides: of this command line alone.
        folders: of `--config-dir`.

    Raises:
        ConfigError: a `_target_` stands in no YAML of conf/ or of `folders`, and no override names it.
    """
    known = {target for folder in (CONF, *folders) for target in _targets_of_folder(folder)}
    for key, target in _targets(OmegaConf.to_container(cfg, resolve=True), ""):
        typed = any(key_of(text) == key for text in overrides)
        if not typed and target not in known:
            raise ConfigError(
                f"{key}={target} stands in the record alone, and a record is not allowed to choose code; if "
                f"you trust it, name it on this command line: {key}={target}"
            )


def _targets_of_folder(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.yaml"):
        yield from (target for _, target in _targets(OmegaConf.to_container(OmegaConf.load(file)), ""))


def _targets(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield each `_target_`, with its key, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            key = f"{where}.{name}" if where else str(name)
            if name == KEY:
                yield key, str(item)
            else:
                yield from _targets(item, key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _targets(item, f"{where}[{i}]")
