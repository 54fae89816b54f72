"""Build the policy of `runner=ray`, in its own process, for the batches that it will serve."""

from collections.abc import Callable, Mapping, Sequence

from eval.config.schema import Config
from eval.episodes.capture import requests_of_every_length
from eval.episodes.policy import build_policy, choose_backends
from eval.runners.ray.batching import Batching, powers_of_two
from eval.sim.tasks import load_tasks
from optim.base import Backend
from policies.base import Observation, Policy, Request
from policies.pi05.policy import Pi05Policy


def build_served_policy(
    config: Config, task_ids: Sequence[int], observe_first: Callable[[], Observation]
) -> tuple[Policy, Batching]:
    """Build the policy and decide how its requests may be batched.

    Backends that are built for shapes are built for 1, 2, 4 ... requests up to `runner.max_batch`; eager
    stages take any number. If a backend serves no batches, everything is built for one request and gets one
    at a time.

    Args:
        observe_first: observes the start of `first_episode`; called where a backend needs it.

    Raises:
        ConfigError, ValueError, OSError: see `eval.episodes.policy.build_policy`.
    """
    backends = {} if config.policy.kind == "oracle" else choose_backends(config)
    alone = [stage for stage, chosen in backends.items() if not chosen.serves_batches]
    sizes = (1,) if alone else powers_of_two(config.runner.max_batch)

    def capture(policy: Pi05Policy) -> Sequence[Request]:
        tasks = load_tasks(config.suite.name)
        return requests_of_every_length(observe_first(), [tasks[i] for i in task_ids], policy, config.seed)

    policy = build_policy(config, capture, batch_sizes=sizes)
    if not isinstance(policy, Pi05Policy):
        return policy, Batching()
    built_for_shapes = config.policy.images == "cuda_graph" or any(
        chosen.needs_examples for chosen in backends.values()
    )
    return policy, Batching(
        sizes=sizes if alone or built_for_shapes else None,
        shape=lambda request: policy.preprocess.prompt_length(request.observation, policy.form),
        one_at_a_time=_reason(backends, alone) if alone and config.runner.max_batch > 1 else None,
    )


def _reason(backends: Mapping[str, Backend], alone: Sequence[str]) -> str:
    who = ", ".join(f"optim.{stage}={backends[stage]!r}" for stage in alone)
    groups = ", ".join(f"optim/{stage}" for stage in alone)
    return f"no batches with {who}; choose another {groups} to have them"
