"""The scripted expert as a policy of the configuration."""

from collections.abc import Sequence

from eval.config.schema import Config, ConfigError
from eval.specs.base import BuiltPolicy, Capture, PolicySpec


class OracleSpec(PolicySpec):
    """Reads the simulator's poses and the goal: no weights, no images."""

    sees_images = False

    def check(self, config: Config) -> None:
        if config.record_observations:
            raise ConfigError(
                "record_observations must be 0 with policy=oracle, which sees no images, "
                f"got {config.record_observations}"
            )
        refuse(config.suite.name, config.suite.tasks, config.protocol.num_tasks)

    def build(self, config: Config, capture: Capture, max_batch: int = 1) -> BuiltPolicy:
        from policies.oracle import OraclePolicy

        return BuiltPolicy(OraclePolicy())

    def wants_gpu(self, config: Config) -> bool:
        return False


def refuse(suite: str, tasks: Sequence[int] | None, num_tasks: int | None) -> None:
    """Raise ConfigError where the oracle cannot do one of the tasks: ids, or the first `num_tasks`."""
    from policies.oracle.served import CANNOT

    cannot = CANNOT.get(suite, {})
    asked = cannot if tasks is None else tasks
    refused = [i for i in asked if i in cannot and (tasks is not None or num_tasks is None or i < num_tasks)]
    if not refused:
        return
    reasons = "; ".join(f"{i} ({cannot[i]})" for i in refused)
    rest = [i for i in (tasks or ()) if i not in cannot]
    way_out = f"suite.tasks={rest}".replace(" ", "") if rest else "suite.tasks without them"
    raise ConfigError(
        f"policy=oracle cannot do every task of suite={suite}: {reasons}; choose others with {way_out}"
    )
