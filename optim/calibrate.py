"""Calibration: `python -m optim.calibrate` measures the largest input of every linear on real observations.

FP8 needs one scale for each linear's input, and takes it from the largest absolute value that was seen.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import torch
from rich.text import Text
from torch import Tensor, nn

from eval.config.schema import ConfigError
from eval.config.tasks import choose_tasks
from eval.episodes.capture import collect_requests
from eval.records.observations import save_requests, spread
from eval.render.console import print_info, report_console
from eval.sim.stack import prepare
from eval.specs.pi05_build import eager_policy, load
from optim.commands import StagesRun, run_command, saved_requests
from optim.core.scales import (
    FP16_MAX,
    Amax,
    Scales,
    check_amax,
    default_path,
    inputs_of,
    linears,
    write_scales,
)
from policies.base import Request
from policies.files import expand_home
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.policy import Pi05Policy
from policies.text import pluralize

LEAST_TASKS = 3
COUNT_RANGE = (8, 64)  # fewer miss what a policy sees, more change the largest value little


@dataclass
class CalibrateConfig:
    """conf/calibrate.yaml: which observations, and where the scales go."""

    count: int = 32
    observations: str | None = None
    keep: str | None = None
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        least, most = COUNT_RANGE
        if not least <= self.count <= most:
            raise ConfigError(
                f"calibrate.count must be {least} to {most}, got {self.count}; 32 is a good choice"
            )
        if self.observations is not None and self.keep is not None:
            raise ConfigError(
                f"calibrate.keep must be null with calibrate.observations, got {self.keep!r}; "
                "the observations are in a file already"
            )
        for key in ("keep", "output"):
            path = getattr(self, key)
            if path is not None and expand_home(path).is_dir():
                raise ConfigError(f"calibrate.{key} must be a file to write, got the folder {path!r}")


@dataclass
class CalibrateRun(StagesRun):
    """A run's configuration, of which checkpoint, policy, suite and denoise steps matter here."""

    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    wants: ClassVar[str] = "weights to calibrate"


def observe_amax(stages: Mapping[str, nn.Module], run: Callable[[], object]) -> Amax:
    """Measure the largest absolute input of every linear of the stages while `run` calls them.

    A linear that is called many times, as the denoise stage's in each Euler step, is seen each time.

    Raises:
        ValueError: a linear was not called, or its inputs were all zero or not finite.
    """
    seen: dict[str, dict[str, Tensor]] = {stage: {} for stage in stages}

    def watch(stage: str, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            largest = args[0].detach().abs().amax().float()
            before = seen[stage].get(name)
            seen[stage][name] = largest if before is None else torch.maximum(before, largest)

        return hook

    with contextlib.ExitStack() as hooks:
        for stage, module in stages.items():
            for name, linear in linears(module).items():
                hooks.enter_context(linear.register_forward_pre_hook(watch(stage, name)))
        run()
    return {
        stage: check_amax(stage, module, {name: value.item() for name, value in seen[stage].items()})
        for stage, module in stages.items()
    }


def calibrate(checkpoint: Checkpoint, policy: Pi05Policy, requests: Sequence[Request], source: str) -> Scales:
    """Measure the scales of a checkpoint on real observations.

    Args:
        policy: runs the checkpoint's own stages (`eval.specs.pi05_build.eager_policy`).
        source: of the requests, for the record.

    Raises:
        ValueError: an observation lacks a camera or has a black image.
        FloatingPointError: the network gave a number that is not finite.
    """
    refuse_blank(requests, policy.cameras)

    def infer_all() -> None:
        for request in requests:
            policy.infer([request])

    return Scales(
        weights_sha256=checkpoint.weights_sha256,
        checkpoint=checkpoint.config.name,
        observations=len(requests),
        source=source,
        tasks=sorted({f"{request.episode.suite}-task{request.episode.task_id}" for request in requests}),
        form=policy.form,
        denoise_steps=policy.denoise_steps,
        dtype=str(policy.dtype).removeprefix("torch."),
        date=datetime.now().astimezone().date().isoformat(),
        inputs=inputs_of(checkpoint),
        amax=observe_amax(checkpoint.stages, infer_all),
    )


def refuse_blank(requests: Sequence[Request], cameras: Sequence[str]) -> None:
    """Raise ValueError for an observation that lacks a camera or has a black image.

    A network that sees nothing has small inputs, which give small scales.
    """
    for i, request in enumerate(requests):
        images = request.observation.images
        for name in cameras:
            if name not in images:
                raise ValueError(
                    f"observation {i} must have the image {name!r}, got {sorted(images)}; "
                    "collect observations with this policy"
                )
            if not images[name].any():
                raise ValueError(
                    f"observation {i} must be a real one, got an image {name!r} whose pixels are all zero; "
                    "leave calibrate.observations out to collect some"
                )


def refuse_few_tasks(count: int) -> None:
    """Raise ConfigError for observations of fewer than three tasks: what one task shows is too little."""
    if count < LEAST_TASKS:
        raise ConfigError(
            f"calibration needs observations of at least {LEAST_TASKS} tasks, got {count}; "
            "choose more with suite.tasks and protocol.num_tasks"
        )


def run(config: CalibrateRun) -> None:
    """Collect or read observations, measure, write the scales, print what was done."""
    options = config.calibrate
    saved = _read_requests(options)
    tasks = choose_tasks(config) if saved is None else []
    refuse_few_tasks(len(tasks) if saved is None else len({r.episode.task_id for r in saved}))
    checkpoint = load(config)
    path = default_path(checkpoint) if options.output is None else expand_home(options.output)
    if path.exists() and not options.overwrite:
        raise ConfigError(
            f"{path} holds scales already; set calibrate.overwrite=true to replace them, "
            "or calibrate.output to write elsewhere"
        )
    policy = eager_policy(config, checkpoint)
    if saved is None:
        prepare()
        print_info(f"collecting {options.count} observations of {config.suite.name}: minutes on a CPU")
        requests = collect_requests(
            tasks, policy, config.seed, options.count, max_steps=config.suite.max_steps
        )
        source = f"LIBERO, {checkpoint.config.name} acting, seed {config.seed}"
        if options.keep is not None:
            save_requests(expand_home(options.keep), requests)
    else:
        requests, source = saved, f"file {Path(str(options.observations)).name}"
    scales = calibrate(checkpoint, policy, requests, source)
    write_scales(path, scales)
    report_console().print(Text(summary(scales, path)), soft_wrap=True)
    for warning in warnings(scales.amax):
        print_info(f"warning: {warning}")


def summary(scales: Scales, path: Path) -> str:
    """Summarise what was measured, in three lines."""
    largest = {stage: max(amax, key=amax.__getitem__) for stage, amax in scales.amax.items()}
    peaks = [f"{stage} {scales.amax[stage][name]:.4g} ({name})" for stage, name in largest.items()]
    tasks, steps = pluralize(len(scales.tasks), "task"), pluralize(scales.denoise_steps, "denoise step")
    return "\n".join(
        (
            f"{scales.checkpoint} on {scales.observations} observations of {tasks} "
            f"({scales.form}, {steps}, {scales.dtype}; {scales.source})",
            f"largest inputs: {', '.join(peaks)}",
            f"scales: {path}",
        )
    )


def warnings(amax: Amax) -> list[str]:
    """Write a line for each stage with inputs that float16 cannot hold."""
    lines = []
    for stage, values in amax.items():
        over = [name for name, value in values.items() if value >= FP16_MAX]
        if over:
            lines.append(
                f"{len(over)} linears of {stage} have inputs >= {FP16_MAX:.0f}, which float16 cannot hold: "
                f"{', '.join(over[:3])}{', ...' if len(over) > 3 else ''}; use bfloat16 or fp8 there"
            )
    return lines


def main() -> None:
    """Run the command line."""
    run_command("calibrate", CalibrateRun, run)


def _read_requests(options: CalibrateConfig) -> list[Request] | None:
    requests = saved_requests(options.observations)
    if requests is None:
        return None
    if len(requests) < options.count:
        raise ConfigError(
            f"calibrate.count must be <= {len(requests)}, the observations in {options.observations}, "
            f"got {options.count}; set calibrate.count={len(requests)} or collect more"
        )
    return spread(requests, options.count)


if __name__ == "__main__":
    main()
