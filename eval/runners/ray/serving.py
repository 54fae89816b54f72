"""Build the policy of `runner=ray`, in its own process, for the batches that it will serve."""

from collections.abc import Callable, Sequence

from eval.config.schema import Config
from eval.config.tasks import choose_tasks
from eval.episodes.capture import requests_of_every_length
from eval.specs.base import BuiltPolicy
from eval.specs.choose import make_spec
from policies.base import Observation, Request
from policies.pi05.policy import Pi05Policy


def build_served_policy(
    config: Config, task_ids: Sequence[int], observe_first: Callable[[], Observation]
) -> BuiltPolicy:
    """Build the policy for up to `runner.max_batch` requests at a time.

    Args:
        observe_first: observes the start of `first_episode`; called where a backend needs it.

    Raises:
        ConfigError, ValueError, OSError: see `PolicySpec.build`.
    """

    def capture(policy: Pi05Policy) -> Sequence[Request]:
        tasks = [task for task in choose_tasks(config) if task.task_id in task_ids]
        return requests_of_every_length(observe_first(), tasks, policy, config.seed)

    return make_spec(config.policy).build(config, capture, config.runner.max_batch)
