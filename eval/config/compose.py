"""Compose configurations with Hydra outside of a Hydra job."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from eval.config import schema
from eval.config.groups import CONF
from eval.config.schema import Config


def configure(overrides: Sequence[str]) -> Config:
    """Compose and check what `python -m eval` would run with these overrides."""
    schema.register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config
