"""Build the policy that is served: for prompts of any length and images of the sizes that clients send."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.config.schema import Config, ConfigError, Pi05PolicyConfig
from eval.serve.config import ServeRun
from eval.specs.base import PolicySpec
from policies.base import ActionChunk, EpisodeKey, Observation, Policy, Request
from policies.pi05.norm_stats import STATE_DIM
from policies.pi05.policy import Pi05Policy
from policies.pi05.prompt import STATE_BINS
from policies.remote.fields import CAMERAS

PROMPT_MULTIPLE = 16  # as the recipes with TensorRT have it: an engine for every 16 tokens
WORD = "a"  # one piece of every vocabulary
SYNTHETIC = EpisodeKey("synthetic", 0, 0, 0)


def prepare(config: ServeRun, spec: PolicySpec) -> ServeRun:
    """Choose what serving needs, and refuse what this machine cannot run.

    Backends that are built for shapes get `policy.prompt_multiple`, so that a few engines serve every prompt.

    Raises:
        ConfigError: a key is wrong, or this machine lacks a device.
        CannotRun: a backend cannot run here.
    """
    spec.check_machine(config)
    if not has_limits(config):
        if config.server.max_prompt_tokens is not None:
            raise ConfigError(
                f"server.max_prompt_tokens={config.server.max_prompt_tokens} limits what is built, and "
                f"policy={config.policy.name} builds nothing for a prompt's length; leave it out"
            )
        return config
    options = config.pi05_options()
    if options.form != "lean" or options.prompt_multiple > 1:
        return config
    return replace(config, policy=replace(options, prompt_multiple=PROMPT_MULTIPLE))


def has_limits(config: Config) -> bool:
    """Whether the policy refuses shapes that it was not built for."""
    if not isinstance(config.policy, Pi05PolicyConfig):
        return False
    from eval.specs.pi05_build import built_for_shapes, choose_backends

    return built_for_shapes(config, choose_backends(config))


def build(config: ServeRun, spec: PolicySpec) -> Policy:
    """Build the policy; ConfigError for one that needs what no client sends."""
    server = config.server

    def capture(policy: Pi05Policy) -> Sequence[Request]:
        return synthetic_requests(policy, server.image_sizes, server.max_prompt_tokens)

    policy = spec.build(config, capture).policy
    if policy.needs_privileged:
        raise ConfigError(
            f"policy={config.policy.name} reads poses from the simulator, which no client sends; "
            "serve one that sees images, as policy=baseline"
        )
    if strange := set(policy.cameras) - set(CAMERAS):
        raise ConfigError(
            f"policy={config.policy.name} wants the images {sorted(strange)}, clients send "
            f"{', '.join(CAMERAS)}; serve another policy"
        )
    if not isinstance(policy, Pi05Policy):
        return policy
    sizes = tuple(server.image_sizes) if config.pi05_options().graphs_images else None
    return BoundedPolicy(policy, server.max_prompt_tokens, sizes)


class BoundedPolicy:
    """A policy that refuses, by the key of the server's that says so, what it was not built for.

    Args:
        max_prompt_tokens: of a prompt at most, padding left out; None: all that the checkpoint allows.
        image_sizes: of square images; None: any.
    """

    def __init__(
        self, policy: Pi05Policy, max_prompt_tokens: int | None, image_sizes: tuple[int, ...] | None
    ) -> None:
        self.policy = policy
        self.name, self.cameras = policy.name, policy.cameras
        self.needs_privileged, self.replan_steps = policy.needs_privileged, policy.replan_steps
        self._max_prompt_tokens = max_prompt_tokens
        self._image_sizes = image_sizes

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """See `policies.base.Policy`; ValueError for what the policy was not built for."""
        for request in requests:
            self._check(request.observation)
        return self.policy.infer(requests)

    def provenance(self) -> dict[str, Any]:
        return self.policy.provenance()

    def engagement(self) -> dict[str, dict[str, Any]]:
        return self.policy.engagement()

    def _check(self, observation: Observation) -> None:
        for name in self.cameras if self._image_sizes is not None else ():
            height, width, _ = observation.images[name].shape
            if height != width or height not in (self._image_sizes or ()):
                sizes = ", ".join(map(str, self._image_sizes or ()))
                raise ValueError(
                    f"image {name!r} has {height} x {width} pixels, it was built for squares of "
                    f"server.image_sizes=[{sizes}]"
                )
        if self._max_prompt_tokens is None:
            return
        tokens = len(self.policy.preprocess.prompt(observation))
        if tokens > self._max_prompt_tokens:
            raise ValueError(
                f"the prompt has {tokens} tokens, the server was built for at most "
                f"server.max_prompt_tokens={self._max_prompt_tokens}"
            )


def synthetic_requests(
    policy: Pi05Policy, image_sizes: Sequence[int], max_prompt_tokens: int | None = None
) -> list[Request]:
    """Make requests of every shape that clients can send: each prompt length once, then each image size.

    Shapes alone count; images are grey, states lie where the prompt words them shortest.

    Raises ConfigError where no prompt is as short as `max_prompt_tokens`.
    """
    grey = [np.full((size, size, 3), 128, np.uint8) for size in image_sizes]
    state = np.zeros(STATE_DIM)
    if policy.preprocess.state is not None:
        half_bin = (STATE_BINS[1] - STATE_BINS[0]) / 2
        state = policy.preprocess.state.unnormalize(np.full(STATE_DIM, STATE_BINS[0] + half_bin))
    most = max_prompt_tokens or policy.dims.max_token_len
    by_length: dict[int, Request] = {}
    for words in range(policy.dims.max_token_len + 1):
        images = dict.fromkeys(policy.cameras, grey[0])
        observation = Observation(images, state, " ".join([WORD] * words))
        try:
            if len(policy.preprocess.prompt(observation)) > most:
                break
        except ValueError:  # too long for the checkpoint
            break
        length = policy.preprocess.prompt_length(observation, policy.form)
        by_length.setdefault(length, Request(observation, SYNTHETIC, 0))
    if not by_length:
        raise ConfigError(
            f"server.max_prompt_tokens must leave room for a prompt, got {max_prompt_tokens}; raise it"
        )
    first = next(iter(by_length.values()))
    others = [
        replace(first, observation=replace(first.observation, images=dict.fromkeys(policy.cameras, image)))
        for image in grey[1:]
    ]
    return [*by_length.values(), *others]
