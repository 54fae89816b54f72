"""What the harness asks about a policy before it is built, and how it is built.

`_target_` of conf/policy/*.yaml names a subclass of `PolicySpec`, or a class that is a policy by itself
(`eval.specs.custom`). Specs are imported for every command line: import what is heavy where it is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.config.schema import Config
from eval.specs.batching import Batching
from policies.base import Policy, Request

Capture = Callable[[Any], Sequence[Request]]
"""Collects requests with real observations for a policy: the shapes that its stages will meet."""


@dataclass(frozen=True)
class BuiltPolicy:
    """A policy that is ready, and how its requests may be served together."""

    policy: Policy
    batching: Batching = field(default_factory=Batching)


class PolicySpec:
    """One kind of policy; it gets `policy.args` as keywords.

    Attributes:
        has_stages: whether it reads checkpoint, denoise and optim.
        takes_guidance: whether its chunks can be guided towards old ones, as clock=rtc does.
        sees_images: whether it may ask for camera images; of one that does not, nothing is rendered.
    """

    has_stages = False
    takes_guidance = False
    sees_images = True

    def check(self, config: Config) -> None:
        """Raise ConfigError for what this policy excludes; cheap, before anything is loaded."""

    def known_chunks(self, config: Config) -> tuple[int | None, int | None]:
        """Replan steps and horizon of its chunks; None for what only the built policy says."""
        return None, None

    def check_machine(self, config: Config) -> None:
        """Raise CannotRun or ConfigError for what this machine lacks, before anything is loaded."""

    def build(self, config: Config, capture: Capture, max_batch: int = 1) -> BuiltPolicy:
        """Build the policy, cheap checks first.

        Args:
            capture: called only where examples are needed, after everything that fails sooner.
            max_batch: how many requests it will be asked at a time at most.
        """
        raise NotImplementedError

    def wants_gpu(self, config: Config) -> bool:
        """Whether it runs on a GPU where there is one."""
        return True

    def gpu_index(self, config: Config) -> int:
        """The GPU that its local run uses, among those that torch sees."""
        return 0
