"""policy=auto: the fastest policy that this machine can run, and why it is none of the faster ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from eval.config.multiply import key_of
from eval.config.schema import Config, ConfigError
from eval.specs.pi05 import Pi05Spec
from policies.text import shell_command, shell_override

if TYPE_CHECKING:  # torch, as in `eval.specs.pi05`
    from optim.base import Backend

AUTO = "eval.specs.auto.AutoSpec"  # `_target_` of conf/policy/auto.yaml
# Fastest first, at full size on H200s: 7.9, 13.2, 14.6 (the stages alone) and 147 ms. No measurement shows a
# TensorRT policy to be faster than `compiled` (docs/results, 2026-11-23 and 2026-11-28).
FASTEST = ("realtime", "native_fp8", "compiled", "baseline")


class AutoSpec(Pi05Spec):
    """Stands for the policy that `settle` puts in its place."""

    def check_machine(self, config: Config) -> None:
        """Nothing: the last of `FASTEST` runs anywhere."""


def settle(
    cfg: DictConfig, overrides: Sequence[str], configure: Callable[[Sequence[str]], Config]
) -> tuple[list[str], list[str]]:
    """Put the policy that is chosen into the overrides of a run with policy=auto; others stay as they are.

    Args:
        cfg: what the overrides compose.
        configure: composes and checks other overrides.

    Returns:
        The overrides, and lines that say what was chosen and why none of the faster ones.

    Raises:
        ConfigError, CannotRun: what is set beside it lets no policy run here.
    """
    if cfg.policy.get("_target_") != AUTO:
        return list(overrides), []
    others = [text for text in overrides if key_of(text) != "policy"]
    lines: list[str] = []
    for policy in FASTEST:
        settled = [f"policy={policy}", *others]
        reason = _obstacle(configure(settled), is_last=policy == FASTEST[-1])
        if reason is None:
            return settled, [*lines, f"policy=auto takes {policy}"]
        lines.append(f"policy=auto passes over {policy}: {reason}")
    raise AssertionError("the last policy runs, or raises why not")


def _obstacle(config: Config, *, is_last: bool) -> str | None:
    from eval.specs.machine import explain
    from eval.specs.pi05_build import choose_backends
    from optim.base import CannotRun

    try:
        backends = choose_backends(config)
    except CannotRun as error:
        if is_last:
            raise
        return "; ".join(f"{what}: {why}" for why, what in explain(config, error.reasons).parts)
    except ConfigError as error:
        if is_last:
            raise
        return str(error)
    return _no_scales(config) if _wants_scales(config, list(backends.values())) else None


def _wants_scales(config: Config, backends: "Sequence[Backend]") -> bool:
    """Whether scales are read that nobody named; those of `optim.scales` are there, or an error."""
    return config.optim.scales is None and any(backend.needs_amax for backend in backends)


def _no_scales(config: Config) -> str | None:
    """Say that there are no FP8 scales of the weights; whether they are up to date is `load_scales`'s."""
    from optim.core.scales import scale_places

    places = []
    for place in scale_places(config.checkpoint, lambda: _weights_sha256(config)):
        if place.is_file():
            return None
        places.append(place)
    checkpoint = config.checkpoint
    words = [shell_override("checkpoint", checkpoint.name)]
    words += [shell_override("checkpoint.path", checkpoint.path)] if checkpoint.path else []
    return (
        f"no FP8 scales at {' or '.join(map(str, places))}; "
        f"{shell_command('optim.calibrate', *words)} measures them"
    )


def _weights_sha256(config: Config) -> str:
    """Hash the weights as `Checkpoint.weights_sha256` has them, without loading them."""
    from eval.specs.pi05_build import choose_device
    from policies.pi05.checkpoint_files import find_folder, find_weights
    from policies.pi05.dims import RANDOM_SIZES
    from policies.pi05.random_weights import recipe_sha256
    from policies.pi05.weight_files import hash_weights

    checkpoint = config.checkpoint
    if checkpoint.path is not None:
        return hash_weights(
            find_weights(find_folder(checkpoint.path, checkpoint.layout, checkpoint.revision))
        )
    dims = RANDOM_SIZES[str(checkpoint.sizes)]
    if checkpoint.horizon is not None:
        dims = replace(dims, action_horizon=checkpoint.horizon)
    return recipe_sha256(dims, checkpoint.seed, choose_device(config.pi05_options().device))
