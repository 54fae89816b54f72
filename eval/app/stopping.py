"""The run that may stop early: the run that it is compared with, read and checked."""

from collections.abc import Mapping
from typing import Any

from eval.analysis.comparable import at
from eval.analysis.comparison import MARGIN
from eval.analysis.sequential import EarlyStop
from eval.config.schema import Config, ConfigError
from eval.config.tasks import instruction_source
from eval.episodes.plan import Plan
from eval.records.reader import Run, read_run
from eval.records.resume import Changed
from policies.files import expand_home
from policies.text import brief


def open_stop(config: Config, plan: Plan, before: Mapping[str, Any] | None) -> EarlyStop | None:
    """Read the run of `against` and make the test that ends this one; None where none is to.

    Args:
        before: run.json of a run that is resumed.

    Raises:
        ConfigError: the two runs could not be compared, or the other lacks one of the planned episodes.
        Changed: the other run is not the one that this one was begun against.
        FileNotFoundError, ValueError: it cannot be read.
    """
    if config.stop is None:
        return None
    folder = expand_home(str(config.against))
    base = read_run(folder)
    _refuse_unlike(str(folder), base, config, plan)
    finished = {record.key: record.success for record in base.episodes if record.success is not None}
    try:
        stop = EarlyStop(plan.episodes.keys(), finished, MARGIN if config.margin is None else config.margin)
    except ValueError as error:
        raise ConfigError(
            f"against={folder} must have finished every episode of this run: {error}; give the same suite, "
            "protocol, tasks and seed"
        ) from error
    was = (before or {}).get("stop") or {}
    if before is not None and was.get("base_sha256") != stop.base_sha256:
        raise Changed(f"against={folder} has other outcomes than when this run was begun")
    return stop


def _refuse_unlike(name: str, base: Run, config: Config, plan: Plan) -> None:
    """Raise ConfigError for a run whose pairs with this one would mean nothing."""
    same: dict[str, tuple[Any, Any]] = {
        "suite.max_steps": (at(base.run, ("config", "suite", "max_steps")), config.suite.max_steps),
        "instructions": (at(base.run, ("instructions",)), instruction_source(config)),
        "seeding": ({record.seeding for record in base.episodes}, {plan.seeding}),
        "checkpoint_sha256": (
            {record.checkpoint_sha256 for record in base.episodes},
            {plan.checkpoint_sha256},
        ),
    }
    for key, (recorded, own) in same.items():
        if recorded is not None and recorded != own:
            raise ConfigError(
                f"against={name} must have the same {key}, got {_spell(recorded)} and {_spell(own)}"
            )


def _spell(value: Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, set) else brief(value)
