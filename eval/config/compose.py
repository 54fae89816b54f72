"""Configurations composed by Hydra outside of a Hydra job."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from eval.config import schema
from eval.config.groups import CONF
from eval.config.schema import Config


def configure(overrides: Sequence[str]) -> Config:
    """Return the checked configuration that overrides of `python -m eval` compose."""
    schema.register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config
