"""Inspect: `python -m optim.inspect [policy=... checkpoint=... suite=...]` shows what the stages work on.

Shapes and dtypes come from a real observation that runs through the eager stages; then how many combinations
of them the suite's tasks have, for each of which a backend builds an engine; then where the tokens come from.
It needs no GPU: a backend that cannot run here is named, and the rest is shown all the same.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from rich.text import Text
from torch import Tensor, nn

from eval.config.backends import make_backend
from eval.config.schema import Config
from eval.config.tasks import choose_tasks
from eval.episodes.capture import example_requests
from eval.records.observations import require_cameras
from eval.render.console import print_info, report_console
from eval.render.tables import NONE, Table, to_console
from eval.sim.stack import prepare
from eval.sim.tasks import Task
from eval.specs.pi05_build import choose_backends, eager_policy, load
from optim.base import Args, CannotRun
from optim.commands import StagesRun, run_command, saved_requests
from optim.core.engines import signature
from policies.base import Request
from policies.pi05.dims import STAGES
from policies.pi05.policy import Pi05Policy
from policies.pi05.preprocess import ModelInputs

OUTPUTS = {
    "vision": ("image_tokens_BQW",),
    "prefix": ("keys_LBGPD", "values_LBGPD", "prefix_mask_BP"),
    "denoise": ("actions_BHA",),
}
ARGUMENTS = ("stage", "", "name", "shape", "dtype", "device")
ENGINES = ("stage", "backend", "options", "engines", "inputs")
TOKENS = ("part", "valid", "masked", "padded", "total")


@dataclass
class InspectConfig:
    """conf/inspect.yaml: which observations to look at."""

    observations: str | None = None


@dataclass
class InspectRun(StagesRun):
    """A run's configuration, of which suite, checkpoint, policy and denoise steps matter here."""

    inspect: InspectConfig = field(default_factory=InspectConfig)
    wants: ClassVar[str] = "stages to inspect"


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of one part of the prefix come from.

    Attributes:
        part: a camera slot or the prompt.
        valid: real ones.
        masked: computed for a camera that is not there, and masked.
        padded: computed to fill the prompt up, and masked.
    """

    part: str
    valid: int
    masked: int
    padded: int

    @property
    def total(self) -> int:
        return self.valid + self.masked + self.padded


def run(config: InspectRun) -> None:
    """Print what a configuration's stages get, give and compile for."""
    tasks = choose_tasks(replace(config, protocol=replace(config.protocol, num_tasks=None)))
    backends = {stage: backend_of(stage, getattr(config.optim, stage)) for stage in STAGES}
    saved = saved_requests(config.inspect.observations)
    print_info(f"reading the weights of checkpoint {config.checkpoint.name}")
    checkpoint = load(config)
    policy = eager_policy(config, checkpoint)
    requests = _observe(config, policy, tasks, saved)
    require_cameras(requests, policy.cameras)
    print_info(f"running {len(requests)} observations through the stages")
    examples = policy.example_inputs([[request] for request in requests])
    shown = {stage: examples[stage][0] for stage in STAGES}
    prompts = {f"prompt of task {task.task_id}": _ask(requests[0], task) for task in tasks}
    rows = argument_rows(checkpoint.stages, shown)
    tables = (
        Table(ARGUMENTS, rows, "Inputs and outputs of an observation", texts=6, blank_repeats=True),
        Table(ENGINES, engine_rows(examples, backends), "Engines for the tasks of the suite", texts=3),
        Table(TOKENS, token_rows(policy, prompts), "Prefix tokens"),
    )
    console = report_console()
    console.print(
        Text(f"{config.policy.name}, {checkpoint.weights_label}, {config.pi05_options().form} form")
    )
    console.print(to_console(tables))
    if (problem := cannot_run(config)) is not None:
        console.print(Text(f"note: {problem}"), soft_wrap=True)


def backend_of(stage: str, options: Any) -> tuple[str, str, bool]:
    """Name a backend, its options as configured, and whether it builds engines for shapes.

    Raises:
        ConfigError: not a backend, or one that refuses its options.
    """
    backend = make_backend(stage, options)
    rest = ", ".join(f"{name}={value}" for name, value in options.items() if name != "_target_")
    return type(backend).__name__, rest, backend.needs_examples


def cannot_run(config: Config) -> str | None:
    """Say why the policy's backends cannot run here; None if they can."""
    try:
        choose_backends(config)
    except CannotRun as error:
        return str(error)
    return None


@torch.no_grad()
def argument_rows(stages: Mapping[str, nn.Module], shown: Mapping[str, Args]) -> list[tuple[str, ...]]:
    """Cells under `ARGUMENTS`: what each stage takes and returns."""
    rows: list[tuple[str, ...]] = []
    for name, args in shown.items():
        result = stages[name](*args)
        outputs = result if isinstance(result, tuple) else (result,)
        inputs = list(inspect.signature(stages[name].forward).parameters)[: len(args)]  # others have defaults
        rows += [(name, "in", *spelt) for spelt in _spell(inputs, args)]
        rows += [(name, "out", *spelt) for spelt in _spell(OUTPUTS[name], outputs)]
    return rows


def engine_rows(
    examples: Mapping[str, Sequence[Args]], backends: Mapping[str, tuple[str, str, bool]]
) -> list[tuple[str, ...]]:
    """Cells under `ENGINES`: how many each backend builds for these calls, and how many inputs differ."""
    rows: list[tuple[str, ...]] = []
    for stage, calls in examples.items():
        name, options, for_shapes = backends[stage]
        signatures = len({signature(args) for args in calls})
        rows.append((stage, name, options or NONE, str(signatures) if for_shapes else "any", str(signatures)))
    return rows


def count_tokens(policy: Pi05Policy, inputs: ModelInputs) -> list[Tokens]:
    """Count the prefix tokens of one inference by where they come from, camera slots first."""
    dims, each = policy.dims, policy.dims.tokens_per_image
    slots = dims.live_cameras if inputs.image_mask_BN is None else dims.cameras
    visible = [True] * len(slots) if inputs.image_mask_BN is None else inputs.image_mask_BN[0].tolist()
    counts = [
        Tokens(slot, each if valid else 0, 0 if valid else each, 0)
        for slot, valid in zip(slots, visible, strict=True)
    ]
    width = inputs.tokens_BT.shape[1]
    valid = width if inputs.token_mask_BT is None else int(inputs.token_mask_BT[0].sum())
    return [*counts, Tokens("prompt", valid, 0, width - valid)]


def token_rows(policy: Pi05Policy, prompts: Mapping[str, Request]) -> list[tuple[str, ...]]:
    """Cells under `TOKENS`: camera slots, each prompt, and the sums with the shortest and longest.

    Args:
        prompts: by the name of their row.
    """
    accounts = {}
    for name, request in prompts.items():
        inputs = policy.preprocess([request.observation], policy.form)
        *slots, prompt = count_tokens(policy, inputs)
        accounts[name] = replace(prompt, part=name)
    lengths = sorted(accounts.values(), key=lambda prompt: (prompt.valid, prompt.total))
    sums = [
        total(f"all with the {which} prompt", [*slots, prompt])
        for which, prompt in (("shortest", lengths[0]), ("longest", lengths[-1]))
    ]
    return [
        (row.part, *(str(number) for number in (row.valid, row.masked, row.padded, row.total)))
        for row in (*slots, *accounts.values(), *sums)
    ]


def total(name: str, parts: Sequence[Tokens]) -> Tokens:
    """Sum some parts under a new name."""
    counts = ((part.valid, part.masked, part.padded) for part in parts)
    return Tokens(name, *(sum(column) for column in zip(*counts, strict=True)))


def _observe(
    config: InspectRun, policy: Pi05Policy, tasks: Sequence[Task], saved: Sequence[Request] | None
) -> list[Request]:
    """Collect requests that together have every shape of the suite's tasks.

    From the simulator, all have the images at the start of the first task and the words of one of the tasks.
    From a file, the first observation is asked with each task's instruction: images have one size, so that
    the prompt alone decides; where it carries the state, lengths are those of the file's states.
    """
    if saved is None:
        print_info("starting the simulator, for the first task's images; every task gives its words")
        prepare()
        return example_requests(tasks, policy, config.seed)
    by_shape: dict[object, Request] = {}
    asked = saved if policy.preprocess.state is not None else saved[:1]
    for request in [*saved[:1], *(_ask(request, task) for request in asked for task in tasks)]:
        inputs = policy.preprocess([request.observation], policy.form)
        by_shape.setdefault((inputs.tokens_BT.shape, inputs.token_mask_BT is None), request)
    return list(by_shape.values())


def _ask(request: Request, task: Task) -> Request:
    return replace(request, observation=replace(request.observation, instruction=task.language))


def _spell(names: Iterable[str], tensors: Iterable[Tensor | None]) -> Iterator[tuple[str, ...]]:
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is None:
            yield name, "none", "", ""
        else:
            shape = " x ".join(str(size) for size in tensor.shape)
            yield name, shape, str(tensor.dtype).removeprefix("torch."), str(tensor.device)


def main() -> None:
    """Run the command line."""
    run_command("inspect", InspectRun, run)


if __name__ == "__main__":
    main()
