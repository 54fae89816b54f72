"""From `policy._target_` to a spec, checked with everything that is cheap."""

import pkgutil
from collections.abc import Sequence
from typing import Any

from eval.config.errors import one_line
from eval.config.schema import Config, ConfigError, PolicyConfig
from eval.config.tasks import refuse_ignored
from eval.specs.base import PolicySpec
from eval.specs.custom import CustomSpec
from policies.pi05.dims import STAGES


def make_spec(policy: PolicyConfig) -> PolicySpec:
    """Import what `policy._target_` names.

    Raises:
        ConfigError: it cannot be imported, makes no policy, or does not read `policy.args`.
    """
    target = _import(policy)
    if isinstance(target, type) and issubclass(target, PolicySpec):
        try:
            return target(**policy.args)
        except TypeError as error:
            raise ConfigError(
                f"policy.args of policy={policy.name} must be what {policy._target_} takes, "
                f"got {policy.args}: {error}"
            ) from error
    return CustomSpec(policy._target_, target, policy.args)


def checked_spec(config: Config, overrides: Sequence[str]) -> PolicySpec:
    """Make the spec and `check` it; errors are those of both."""
    spec = make_spec(config.policy)
    check(spec, config, overrides)
    return spec


def check(spec: PolicySpec, config: Config, overrides: Sequence[str]) -> None:
    """Refuse what a policy would ignore or excludes; cheap, before anything is loaded.

    Args:
        overrides: of this command line.

    Raises:
        ConfigError, ValueError, OSError: naming the key.
    """
    for stage in STAGES:
        backend = getattr(config.optim, stage)
        if not spec.has_stages and backend is not None:
            raise ConfigError(
                f"optim.{stage} must be null with policy={config.policy.name}, which has no stages, "
                f"got {backend!r}; choose a policy with weights, for example policy=baseline"
            )
    if config.clock.guide is not None and not spec.takes_guidance:
        raise ConfigError(
            f"clock={config.clock.name} needs a policy whose denoise stage takes guidance, got "
            f"policy={config.policy.name}; use clock=async, or a policy such as policy=baseline"
        )
    refuse_ignored(config, overrides, has_stages=spec.has_stages)
    spec.check(config)


def _import(policy: PolicyConfig) -> Any:
    path = policy._target_
    try:
        target = pkgutil.resolve_name(path)
    except Exception as error:
        raise ConfigError(
            f"policy._target_={path} cannot be imported: {type(error).__name__}: "
            f"{one_line(error)}; give the import path of a class, as in my_pkg.MyPolicy, from an installed "
            "package or the current folder"
        ) from error
    if not callable(target):
        raise ConfigError(f"policy._target_={path} must name a class, got a {type(target).__name__}")
    return target
