"""Compose configurations with Hydra outside of a Hydra job."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf

from eval.config import schema
from eval.config.credentials import refuse_credentials
from eval.config.groups import CONF
from eval.config.schema import Config
from eval.config.targets import naming_lost_choices, refuse_recorded_arguments, refuse_recorded_targets
from eval.config.typed import keep_text, refuse_unknown, refuse_unread
from policies.files import real_path
from policies.text import quoted


def configure(
    overrides: Sequence[str], typed: Sequence[str] | None = None, folders: Sequence[Path] = ()
) -> Config:
    """Compose and check what `python -m eval` would run with these overrides.

    Args:
        typed: the overrides of this command line, where others come from a record.
        folders: with YAML of the user's own, as `--config-dir` names one.

    Raises ConfigError, among others, for a `_target_`, a server, an argument of a policy or a YAML of the
    user's that the record alone names.
    """
    if typed is None:
        return check(compose_run(overrides, folders))
    with naming_lost_choices(typed):
        cfg = compose_run(overrides, folders)
    refuse_recorded_targets(cfg, typed, folders)
    refuse_recorded_arguments(overrides, typed)
    return check(cfg)


@contextmanager
def own_hydra() -> Iterator[None]:
    """Leave the global state of Hydra and OmegaConf as it was: the caller may be a Hydra program itself."""
    state = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        Singleton.set_state(state)


def compose_run(overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """Compose what `python -m eval` would run with these overrides."""
    schema.register()
    refuse_unread(overrides, several_jobs=False, has_folder=False)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", [*search_path(folders), *keep_text(overrides)])


def search_path(folders: Sequence[Path]) -> list[str]:
    """Write the override that lets Hydra look into folders too; FileNotFoundError where one is not there."""
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"--config-dir: no folder {str(folder)!r} (looked at {real_path(folder)})"
            )
    places = [quoted("", f"file://{folder.absolute()}")[1:] for folder in folders]
    return [f"hydra.searchpath=[{','.join(places)}]"] if places else []


def check(cfg: DictConfig) -> Config:
    """Convert to dataclasses; ConfigError for a value out of range, a key without a value, or a secret."""
    refuse_unknown(cfg)
    refuse_credentials(cfg)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def plain(cfg: DictConfig) -> dict[str, Any]:
    """In dicts, lists and scalars, for run.json."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
