"""From the composed options of a stage to its backend: Hydra's `_target_` ends here."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from eval.config.schema import ConfigError
from optim.base import Backend


def make_backend(stage: str, options: Any) -> Backend:
    """Instantiate a stage's backend, building nothing; ConfigError where it refuses its options."""
    if not isinstance(options, Mapping) or "_target_" not in options:
        raise ConfigError(
            f"optim.{stage} must be a backend, chosen with a slash as in optim/{stage}=eager, got {options!r}"
        )
    try:
        built: Backend = instantiate(options)
    except InstantiationException as error:
        raise ConfigError(f"optim.{stage} refused its options: {error.__cause__ or error}") from error
    return built
