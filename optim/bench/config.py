"""The configuration of a bench: its options, and a command line whose lists of values multiply.

`policy=a,b denoise.steps=10,3` is two settings of two policies. The policies of a setting are timed side by
side; what differs between settings is everything but the policy.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from eval.config import schema
from eval.config.credentials import refuse_credentials
from eval.config.groups import CONF
from eval.config.multiply import choices, key_of, parse_overrides, refuse_hydra
from eval.config.schema import ConfigError
from eval.config.typed import keep_text, refuse_empty, refuse_unknown
from optim.commands import StagesRun

SHORT = {
    "views": "bench.views",
    "prompt_tokens": "bench.prompt_tokens",
    "batch": "bench.batch",
    "rounds": "bench.rounds",
    "steps": "denoise.steps",
}
# of the whole bench; the second line decides which observations are recorded
ONE_VALUE = (
    *(f"bench.{name}" for name in ("rounds", "warmup", "output", "report")),
    *("bench.observations", "bench.num_observations", "suite", "suite.tasks", "seed"),
)
LEAST_OBSERVATIONS = 4  # parity of fewer says little


@dataclass
class BenchConfig:
    """conf/bench.yaml: how to time, on which observations, and where the numbers go."""

    rounds: int = 50
    warmup: int = 10
    batch: int = 1
    views: int | None = None
    prompt_tokens: int | None = None
    observations: str | None = None
    num_observations: int = 8
    output: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        least = {
            "rounds": 1,
            "warmup": 0,
            "batch": 1,
            "views": 1,
            "prompt_tokens": 1,
            "num_observations": LEAST_OBSERVATIONS,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigError(f"bench.{name} must be >= {smallest}, got {value}")


@dataclass
class BenchRun(StagesRun):
    """A run's configuration, of which protocol, runner and tracking do not matter here."""

    wants: ClassVar[str] = "stages to time"
    bench: BenchConfig = field(default_factory=BenchConfig)


@dataclass(frozen=True)
class Row:
    """One policy of a setting.

    Attributes:
        label: its name; with what tells it from the others where they share the name.
        overrides: what composes it, those of the setting included.
        config: checked.
        composed: the same as plain values, for the record.
    """

    label: str
    overrides: tuple[str, ...]
    config: BenchRun
    composed: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Policies that are timed side by side, on the same inputs."""

    overrides: tuple[str, ...]
    rows: tuple[Row, ...]


def read_arguments(arguments: Sequence[str]) -> list[Setting]:
    """Read the settings of a command line; every combination is composed and checked.

    Raises:
        HydraException, OmegaConfBaseException: an argument that Hydra does not understand.
        ConfigError: a value that is not allowed, or several where one is wanted.
    """
    schema.register()
    schema.register_schema("bench", BenchRun)
    typed = keep_text([_without_short_key(argument) for argument in arguments])
    refuse_empty(typed)
    parsed = parse_overrides(typed)
    values = {id(override): _choices(override) for override in parsed}
    row_overrides = [override for override in parsed if _belongs_to_policy(override)]
    others = [override for override in parsed if not _belongs_to_policy(override)]
    settings = []
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for setting in itertools.product(*(values[id(override)] for override in others)):
            rows = [
                _row(setting, row, _swept(row, row_overrides))
                for row in itertools.product(*(values[id(override)] for override in row_overrides))
            ]
            settings.append(Setting(setting, tuple(_with_unique_labels(rows))))
    return settings


def help_text() -> str:
    """Read the help text of conf/bench.yaml."""
    schema.register()
    schema.register_schema("bench", BenchRun)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return str(compose("bench", return_hydra_config=True).hydra.help.template)


def _without_short_key(argument: str) -> str:
    key, equals, value = argument.partition("=")
    return f"{SHORT.get(key, key)}{equals}{value}"


def _belongs_to_policy(override: Override) -> bool:
    key = key_of(override)
    return key in ("policy", "policy.precision", "policy.name") or key.startswith(("optim/", "optim."))


def _choices(override: Override) -> list[str]:
    refuse_hydra(override, "a bench", "bench.output=FOLDER")
    if override.is_discrete_sweep() and key_of(override) in ONE_VALUE:
        values = ", ".join(override.sweep_string_iterator())
        raise ConfigError(
            f"{key_of(override)} must have one value, got {values}; it holds for the whole bench"
        )
    return choices(override)


def _swept(row: Iterable[str], overrides: Iterable[Override]) -> tuple[str, ...]:
    """Choose the values that tell a row from others, the policy's name aside."""
    pairs = zip(row, overrides, strict=True)
    return tuple(
        text.removeprefix("policy.")
        for text, override in pairs
        if override.is_sweep_override() and key_of(override) not in ("policy", "policy.name")
    )


def _row(setting: Sequence[str], row: Sequence[str], swept: Sequence[str]) -> Row:
    overrides = (*setting, *row)
    cfg = compose("bench", list(overrides))
    refuse_credentials(cfg)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, BenchRun)
    refuse_unknown(cfg)
    label = " ".join((config.policy.name, *swept))
    return Row(label, overrides, config, cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))


def _with_unique_labels(rows: Iterable[Row]) -> list[Row]:
    """Number labels that came before: the same policy twice shows the noise."""
    seen: dict[str, int] = {}
    result = []
    for row in rows:
        seen[row.label] = seen.get(row.label, 0) + 1
        label = row.label if seen[row.label] == 1 else f"{row.label} ({seen[row.label]})"
        result.append(Row(label, row.overrides, row.config, row.composed))
    return result
