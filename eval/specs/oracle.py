"""The scripted expert as a policy of the configuration."""

from collections.abc import Iterable, Mapping, Sequence

from eval.config.schema import Config, ConfigError
from eval.sim.plus import plus_tasks
from eval.sim.suites import SuiteName
from eval.specs.base import BuiltPolicy, Capture, PolicySpec
from policies.text import shorten


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
    cannot = _cannot(suite)
    asked = _first(suite, cannot, num_tasks) if tasks is None else tasks
    refused = [i for i in asked if i in cannot]
    if not refused:
        return
    reasons = shorten((f"{i} ({cannot[i]})" for i in refused), "; ")
    rest = [i for i in (tasks or ()) if i not in cannot]
    way_out = f"suite.tasks={rest}".replace(" ", "") if rest else "suite.tasks without them"
    raise ConfigError(
        f"policy=oracle cannot do every task of suite={suite}: {reasons}; choose others with {way_out}"
    )


def _cannot(suite: str) -> Mapping[int, str]:
    """Which tasks it cannot do, and why: of LIBERO-Plus's and of a control arm those of its base tasks."""
    from policies.oracle.served import CANNOT

    name = SuiteName.parse(suite)
    if not name.is_plus:
        return CANNOT.get(name.base if name.is_control else suite, {})
    base = CANNOT.get(name.base, {})
    tasks = plus_tasks(name.base, name.table)
    return {task.task_id: base[task.base_task_id] for task in tasks if task.base_task_id in base}


def _first(suite: str, ids: Iterable[int], num_tasks: int | None) -> list[int]:
    """Which of these ids are of the suite's first `num_tasks` tasks; all where that is None."""
    name = SuiteName.parse(suite)
    if num_tasks is None:
        return list(ids)
    if not name.is_plus:
        return [i for i in ids if i < num_tasks]
    first = [task.task_id for task in plus_tasks(name.base, name.table)][:num_tasks]
    return [i for i in ids if i in first]
