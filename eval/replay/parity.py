"""Replay parity: how far a policy is from a reference on recorded observations, and where they part.

B batch, H horizon, J 7 robot action dims, K Euler steps.

One inference is compared in three ways:

actions: both policies from the observation on. Cosine, relative error and largest difference of the J dims
    that the robot gets, normalised, and the largest difference in the simulator's units.
stages: each stage of the policy on its own, given the inputs that the reference's stages give one another:
    the error that this stage adds.
steps: x after each Euler step, from the same noise: the reference's steps on its own prefix, and eager steps
    on the prefix that the policy computed. Where the policy's denoise stage is eager, that is what it
    computes; the error of one that is a black box shows among the stages.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.records.recording import Sample
from optim.base import Args
from optim.core.actions import Actions, infer_once
from optim.core.parity import Parity, compare, stage_parity, worst
from policies.base import ACTION_DIM, Request
from policies.pi05.denoise import Denoise
from policies.pi05.dims import STAGES
from policies.pi05.policy import Pi05Policy, StageArgs

OF_THE_POLICY_DTYPE = {
    "vision": (),
    "prefix": (0,),
    "denoise": (1, 2),
}  # arguments: image tokens, keys, values


@dataclass(frozen=True)
class ObservationParity:
    """One recorded observation."""

    episode: str
    call: int
    actions: Parity  # of the normalised actions_HJ
    max_abs_action: float  # in the simulator's units
    stages: Mapping[str, Parity]  # each given the reference's inputs
    steps: tuple[Parity, ...]  # of x after each Euler step; empty when the numbers of steps differ
    recorded: Parity  # the run's own actions against the reference's


@dataclass(frozen=True)
class Replay:
    """A policy against a reference, over all observations."""

    tolerance: float  # the least cosine of an observation's actions that is accepted
    reference: Mapping[str, Any]  # provenance; likewise `policy`
    policy: Mapping[str, Any]
    engagement: Mapping[str, Mapping[str, Any]]  # of the policy's stages
    observations: tuple[ObservationParity, ...]

    @property
    def actions(self) -> Parity:
        """The worst of the observations."""
        return worst(observation.actions for observation in self.observations)

    @property
    def max_abs_action(self) -> float:
        return max(observation.max_abs_action for observation in self.observations)

    @property
    def median_cosine(self) -> float:
        return statistics.median(observation.actions.cosine for observation in self.observations)

    @property
    def stages(self) -> dict[str, Parity]:
        """The worst of the observations, by stage."""
        return {name: worst(observation.stages[name] for observation in self.observations) for name in STAGES}

    @property
    def steps(self) -> list[Parity]:
        """The worst of the observations, by Euler step."""
        each = (observation.steps for observation in self.observations)
        return [worst(step) for step in zip(*each, strict=True)]

    @property
    def departs(self) -> int | None:
        """The first Euler step, from 1, after which x has a cosine below the tolerance; None if none."""
        return next((i for i, step in enumerate(self.steps, 1) if step.cosine < self.tolerance), None)

    @property
    def recorded(self) -> Parity:
        """The worst of the run's own actions against the reference."""
        return worst(observation.recorded for observation in self.observations)

    @property
    def problems(self) -> list[str]:
        """Stages whose backend did not serve every call."""
        return [
            f"{stage}: {engaged['backend']} served {engaged['calls']} calls and missed {engaged['misses']}"
            for stage, engaged in self.engagement.items()
            if engaged["misses"] or not engaged["calls"]
        ]

    @property
    def passed(self) -> bool:
        """Whether every observation's cosine is within the tolerance and every backend served its calls."""
        return self.actions.cosine >= self.tolerance and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """In dicts, lists and scalars, the worst included, ready for JSON."""
        of_all = {
            "actions": asdict(self.actions),
            "max_abs_action": self.max_abs_action,
            "median_cosine": self.median_cosine,
            "stages": {name: asdict(parity) for name, parity in self.stages.items()},
            "steps": [asdict(step) for step in self.steps],
            "departs": self.departs,
            "recorded": asdict(self.recorded),
        }
        return asdict(self) | {"worst": of_all, "problems": self.problems, "passed": self.passed}


@dataclass(frozen=True)
class Subjects:
    """The policies that are compared, all on one device."""

    reference: Pi05Policy  # eager, as the run's policy was configured
    shaped: Pi05Policy  # the reference's stages with the policy's form and prompt padding
    policy: Pi05Policy
    reference_denoise: Denoise  # eager, in its policy's precision and number of steps
    policy_denoise: Denoise  # likewise


@torch.no_grad()
def replay(subjects: Subjects, kept: Sequence[Sample], tolerance: float) -> Replay:
    """Run both on what a run recorded and compare.

    Raises:
        ParityError: a number is not finite, or the policy's stages give other shapes than the reference's.
        StageMismatch: a backend refused its inputs and has no fallback.
    """
    observations = tuple(_replay_one(subjects, request, recorded_HJ) for request, recorded_HJ in kept)
    reference, policy = subjects.reference, subjects.policy
    return Replay(tolerance, reference.provenance(), policy.provenance(), policy.engagement(), observations)


def euler_path(denoise: Denoise, args: Args) -> list[Tensor]:
    """Collect x_BHA after each Euler step of an eager denoise stage; the last is its result."""
    before: list[Tensor] = []

    def keep(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before.append(inputs[0].detach().clone())

    handle = denoise.action_in_proj.register_forward_pre_hook(keep)
    try:
        actions_BHA = denoise(*args)
    finally:
        handle.remove()
    return [*before[1:], actions_BHA]


def _replay_one(subjects: Subjects, request: Request, recorded_HJ: NDArray[np.float64]) -> ObservationParity:
    reference, policy = subjects.reference, subjects.policy
    expected, expected_args = _infer(reference, request)
    actions, args = _infer(policy, request)
    expected_HJ = expected.normalised_HA[:, :ACTION_DIM]
    steps: tuple[Parity, ...] = ()
    if policy.denoise_steps == reference.denoise_steps:
        paths = zip(
            euler_path(subjects.policy_denoise, args["denoise"]),
            euler_path(subjects.reference_denoise, expected_args["denoise"]),
            strict=True,
        )
        steps = tuple(compare(x_BHA, expected_BHA) for x_BHA, expected_BHA in paths)
    return ObservationParity(
        episode=str(request.episode),
        call=request.call,
        actions=compare(actions.normalised_HA[:, :ACTION_DIM], expected_HJ),
        max_abs_action=actions.max_abs_action(expected),
        stages=_stage_errors(policy, subjects.shaped, request),
        steps=steps,
        recorded=compare(torch.from_numpy(reference.postprocess.actions.normalize(recorded_HJ)), expected_HJ),
    )


def _infer(policy: Pi05Policy, request: Request) -> tuple[Actions, StageArgs]:
    """Infer, and copy each stage's arguments: engines overwrite their buffers."""
    actions, args = infer_once(policy, request)
    copies = {
        stage: tuple(x if x is None else x.clone() for x in stage_args) for stage, stage_args in args.items()
    }
    return actions, copies


def _stage_errors(policy: Pi05Policy, shaped: Pi05Policy, request: Request) -> dict[str, Parity]:
    """Compare stage by stage, on the inputs of the reference's stages in the policy's form."""
    _, args = _infer(shaped, request)
    errors = {}
    for name in STAGES:
        cast = tuple(
            x.to(policy.dtype) if x is not None and i in OF_THE_POLICY_DTYPE[name] else x
            for i, x in enumerate(args[name])
        )
        expected = shaped.stages[name](*args[name])
        errors[name] = stage_parity(policy.stages[name](*cast), expected)
    return errors
