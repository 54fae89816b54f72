"""From a checked configuration to a policy, cheap checks first."""

from dataclasses import replace

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from eval.schema import Config, ConfigError
from optim.base import STAGES, Pass, PassError, apply_passes
from policies.base import Policy
from policies.oracle import OraclePolicy
from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.devices import find_device
from policies.pi05.policy import Pi05Policy


def build_policy(config: Config) -> Policy:
    """Return the policy that the configuration names, its weights loaded and its passes applied.

    Raises:
        ConfigError: a device that this machine lacks, a stage without a pass, a pass that refuses its options
            or cannot engage.
        ValueError, OSError: from the checkpoint, naming what is missing.
    """
    if config.policy.kind == "oracle":
        return OraclePolicy()
    passes = {stage: _pass(config, stage) for stage in STAGES}
    device = choose_device(config.policy.device)
    dtype = choose_dtype(config.policy.precision, device)
    checkpoint = load_checkpoint(
        replace(config.checkpoint, denoise_steps=config.denoise.steps), device, dtype
    )
    try:
        stages = apply_passes(checkpoint.stages, passes, examples={})
    except PassError as error:
        raise ConfigError(str(error)) from error
    return Pi05Policy.from_checkpoint(checkpoint, stages, name=config.policy.name, form=config.policy.form)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is CUDA where there is a GPU, else the CPU.

    Raises:
        ConfigError: not a device, or one that this machine lacks.
    """
    try:
        return find_device(name, "policy.device")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the matmuls' dtype; `auto` is bfloat16 on CUDA and float32 on the CPU."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def _pass(config: Config, stage: str) -> Pass:
    options = getattr(config.optim, stage)
    if not isinstance(options, dict) or "_target_" not in options:
        raise ConfigError(
            f"optim.{stage} must be a backend, chosen with a slash as in optim/{stage}=eager, got {options!r}"
        )
    try:
        built: Pass = instantiate(options)
    except InstantiationException as error:
        raise ConfigError(f"optim.{stage} refused its options: {error.__cause__ or error}") from error
    return built
