"""Load pi0.5 and apply its backends, as a checked configuration says."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from eval.config.backends import make_backend
from eval.config.origins import checkpoint_origins
from eval.config.schema import Config, ConfigError
from eval.records.run_json import SCALES
from eval.specs.auto import AUTO
from eval.specs.base import Capture
from eval.specs.machine import explain
from optim.base import (
    Backend,
    BackendError,
    CannotRun,
    CountedStage,
    Reason,
    StageContext,
    apply_backends,
    check_backends,
)
from optim.core.code_cache import compiled_code
from optim.core.requirements import no_gpu
from optim.core.scales import load_scales
from optim.eager import eager_stages
from optim.images import GraphedImages
from policies.base import Guidance, Request
from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.devices import find_device
from policies.pi05.dims import STAGES
from policies.pi05.policy import Pi05Policy
from policies.seeding import action_noise


def choose_backends(config: Config) -> dict[str, Backend]:
    """Make the backends and check them against the machine.

    Raises:
        ConfigError: a device that this machine lacks, a stage without a backend, or a backend that refuses
            its options, or does not take the clock's guidance.
        CannotRun: backends, or `policy.images`, cannot run on this machine.
    """
    options = config.pi05_options()
    if config.policy._target_ == AUTO:
        raise ConfigError(
            "policy=auto is for `python -m eval` and eval.api, which choose when a run begins; name a policy "
            "here, such as policy=native_fp8"
        )
    backends = {stage: make_backend(stage, getattr(config.optim, stage)) for stage in STAGES}
    _refuse_guidance(config, backends["denoise"])
    device = choose_device(options.device)
    reasons: dict[str, Reason] = {}
    try:
        check_backends(backends, device, choose_dtype(options.precision, device))
    except CannotRun as error:
        reasons |= error.reasons
    if options.graphs_images and device.type != "cuda":
        reasons["images"] = no_gpu(device, "choose policy.images=eager")
    if reasons:
        raise CannotRun(explain(config, reasons).message, reasons)
    return backends


def built_for_shapes(config: Config, backends: Mapping[str, Backend]) -> bool:
    """Whether something of the policy serves only the shapes that it was built for."""
    return config.pi05_options().graphs_images or any(chosen.needs_examples for chosen in backends.values())


def load(config: Config) -> Checkpoint:
    """Load the checkpoint to the policy's device, in its precision.

    A GPU that is chosen by its number becomes the current one: graphs and kernels are launched there.
    """
    options = config.pi05_options()
    device = choose_device(options.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    dtype = choose_dtype(options.precision, device)
    checkpoint = replace(config.checkpoint, denoise_steps=config.denoise.steps)
    loaded = load_checkpoint(checkpoint, device, dtype, checkpoint_origins(config))
    guide = config.clock.guide
    return loaded if guide is None else loaded.with_guidance(guide)


def _refuse_guidance(config: Config, denoise: Backend) -> None:
    """Raise ConfigError where the denoise stage's engines take no old chunk, or with another Jacobian."""
    guide = config.clock.guide
    if guide is not None and guide.jacobian not in denoise.jacobians:
        known = " or ".join(denoise.jacobians)
        raise ConfigError(
            f"clock={config.clock.name} with clock.jacobian={guide.jacobian} is not served by "
            f"optim.denoise={denoise!r}, which takes {known or 'no guidance'}; "
            + (f"set clock.jacobian={known}, or choose " if known else "choose ")
            + "optim/denoise=eager"
        )


def eager_policy(config: Config, checkpoint: Checkpoint) -> Pi05Policy:
    """Build the policy with every stage as it was loaded."""
    options = config.pi05_options()
    return Pi05Policy.from_checkpoint(
        checkpoint,
        eager_stages(checkpoint.stages),
        name=config.policy.name,
        form=options.form,
        prompt_multiple=options.prompt_multiple,
    )


def optimise(
    config: Config,
    eager: Pi05Policy,
    checkpoint: Checkpoint,
    backends: Mapping[str, Backend],
    capture: Capture,
    batch_sizes: Sequence[int] = (1,),
) -> Pi05Policy:
    """Apply the backends to `eager`.

    Args:
        capture: see `PolicySpec.build`.
        batch_sizes: how many requests it will serve at a time; backends that are built for shapes are built
            for each.

    Raises:
        ConfigError: a backend cannot engage.
        ValueError, OSError: scales are missing or belong to other weights.
    """
    amax: Mapping[str, Mapping[str, float]] = {}
    if config.optim.scales is not None and not any(chosen.needs_amax for chosen in backends.values()):
        raise ConfigError(
            f"optim.scales={config.optim.scales} would not be read: no stage runs in FP8; leave it out"
        )
    if any(chosen.needs_amax for chosen in backends.values()):
        amax = load_scales(checkpoint, config.optim.scales)
        measured = json.dumps(amax, sort_keys=True).encode()  # of the numbers, whichever file has them
        facts = {**eager.checkpoint_facts, SCALES: hashlib.sha256(measured).hexdigest()}
        eager = replace(eager, checkpoint_facts=facts)
    requests: Sequence[Request] = ()
    if built_for_shapes(config, backends):
        requests = [_with_guidance(request, eager) for request in capture(eager)]
    batches = [[request] * size for size in batch_sizes for request in requests]
    examples = eager.example_inputs(batches)
    sources = {
        name: StageContext(name, stage, examples.get(name, ()), amax.get(name, {}), checkpoint.weights_sha256)
        for name, stage in checkpoint.stages.items()
    }
    try:
        stages = _apply(sources, backends, config, checkpoint)
        policy = eager.with_stages(stages)
    except BackendError as error:
        raise ConfigError(str(error)) from error
    if config.pi05_options().graphs_images:
        frames = [[policy.preprocess.frames(request.observation) for request in batch] for batch in batches]
        prepare = policy.preprocess.prepare_images
        images = GraphedImages(frames, policy.dims.image_size, policy.device, prepare)
        policy.preprocess = replace(policy.preprocess, load_images=images)
    return policy


def _apply(
    sources: Mapping[str, StageContext],
    backends: Mapping[str, Backend],
    config: Config,
    checkpoint: Checkpoint,
) -> dict[str, CountedStage]:
    """Apply the backends; the details of those that compile say whether their code was on disk."""
    mismatch = config.optim.on_mismatch
    if not any(backend.compiles for backend in backends.values()):
        return apply_backends(sources, backends, on_mismatch=mismatch)
    sizes = {
        "dims": asdict(checkpoint.dims),
        "dtype": str(checkpoint.dtype),
        "denoise_steps": checkpoint.settings.denoise_steps,
    }
    with compiled_code(checkpoint.device, sizes) as state:
        stages = apply_backends(sources, backends, on_mismatch=mismatch)
    for name, stage in stages.items():
        if backends[name].compiles:
            stage.details["compiled_code"] = state
    return stages


def _with_guidance(request: Request, policy: Pi05Policy) -> Request:
    """Give an example some old chunk, where the policy is guided, so that its engines' guidance is compared.

    The old chunk is noise, followed less and less.
    """
    if policy.guidance is None:
        return request
    size = (policy.dims.action_horizon, policy.dims.action_dim)
    old_HA = action_noise(request.episode, request.call + 1, *size)
    return replace(request, guidance=Guidance(old_HA, np.linspace(1.0, 0.0, size[0], dtype=np.float32)))


def choose_device(name: str) -> torch.device:
    """`find_device` for `policy.device`; ConfigError for a device that does not exist here."""
    try:
        return find_device(name, "policy.device")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The matmuls' dtype; `auto` is bfloat16 on CUDA and float32 on the CPU."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
