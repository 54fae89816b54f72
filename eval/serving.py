"""The policy of `runner=ray`: built in its own process, for the batches that it will meet."""

from collections.abc import Callable, Mapping, Sequence

from eval.batching import Batching, powers_of_two
from eval.build import build_policy, choose_passes
from eval.capture import requests_of_every_length
from eval.libero_env import load_tasks
from eval.schema import Config
from optim.base import Pass
from policies.base import Observation, Policy, Request
from policies.pi05.policy import Pi05Policy


def build_served_policy(
    config: Config, task_ids: Sequence[int], look: Callable[[], Observation]
) -> tuple[Policy, Batching]:
    """Return the policy and how it may be asked.

    Passes that are built for shapes are built for 1, 2, 4 ... requests up to `runner.max_batch`; eager stages
    take any number. With a pass that serves no batches, everything is built and asked for one request.

    Args:
        look: what the cameras see at the start of `eval.capture.first_episode`; called where a pass needs it.

    Raises:
        ConfigError, ValueError, OSError: see `eval.build.build_policy`.
    """
    passes = {} if config.policy.kind == "oracle" else choose_passes(config)
    alone = [stage for stage, chosen in passes.items() if not chosen.serves_batches]
    sizes = (1,) if alone else powers_of_two(config.runner.max_batch)

    def capture(policy: Pi05Policy) -> Sequence[Request]:
        tasks = load_tasks(config.suite.name)
        return requests_of_every_length(look(), [tasks[i] for i in task_ids], policy, config.seed)

    policy = build_policy(config, capture, batch_sizes=sizes)
    if not isinstance(policy, Pi05Policy):
        return policy, Batching()
    built_for_shapes = config.policy.images == "cuda_graph" or any(
        chosen.needs_examples for chosen in passes.values()
    )
    return policy, Batching(
        sizes=sizes if alone or built_for_shapes else None,
        shape=lambda request: policy.preprocess.prompt_length(request.observation, policy.form),
        one_at_a_time=_reason(passes, alone) if alone and config.runner.max_batch > 1 else None,
    )


def _reason(passes: Mapping[str, Pass], alone: Sequence[str]) -> str:
    who = ", ".join(f"optim.{stage}={passes[stage]!r}" for stage in alone)
    groups = ", ".join(f"optim/{stage}" for stage in alone)
    return f"no batches with {who}; choose another {groups} to have them"
