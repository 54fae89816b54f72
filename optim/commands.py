"""What the commands of this package share: a policy with stages, saved observations, errors on one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.app.command import CommandError, command
from eval.config.credentials import refuse_credentials
from eval.config.schema import Config, ConfigError, Pi05PolicyConfig, register_schema
from eval.records.observations import load_requests
from eval.sim.stack import SimulatorError
from optim.base import StageMismatch
from optim.core.parity import ParityError
from policies.base import Request
from policies.files import expand_home

Run = TypeVar("Run", bound="StagesRun")


@dataclass
class StagesRun(Config):
    """The configuration of a command that works on a policy's stages.

    Attributes:
        wants: what the policy must have, in words.
    """

    wants: ClassVar[str] = "stages"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy, Pi05PolicyConfig):
            raise ConfigError(
                f"policy must be one with {self.wants}, got {self.policy.name!r}; choose policy=baseline"
            )


def run_command(name: str, schema: type[Run], run: Callable[[Run], None]) -> None:
    """Run the command line of conf/<name>.yaml; `eval.app.command` says how it ends."""
    register_schema(name, schema)

    def job(cfg: DictConfig) -> None:
        with user_errors():
            refuse_credentials(cfg)
            config = OmegaConf.to_object(cfg)
            assert isinstance(config, schema)
            run(config)

    command(name, job)


@contextmanager
def user_errors(prefix: str = "") -> Iterator[None]:
    """Turn errors that the user can do something about into `CommandError`, one line each."""
    try:
        yield
    except (
        ValueError,
        FloatingPointError,
        OSError,
        SimulatorError,
        ParityError,
        StageMismatch,
        OmegaConfBaseException,
    ) as error:
        raise CommandError(f"{prefix}{error}") from error


def saved_requests(file: str | None) -> list[Request] | None:
    """Read the observations of a file; None where none is named."""
    return None if file is None else load_requests(expand_home(file))
