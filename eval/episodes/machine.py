"""Why a policy cannot run on this machine, in the words of what its user chose."""

from collections.abc import Mapping, Sequence

from eval.config.groups import backend_name, recipe
from eval.config.schema import Config, ConfigError
from optim.core.requirements import WrongMachine


class CannotRunHere(ConfigError):
    """A policy, or a key that was set beside it, cannot run on this machine.

    Attributes:
        names_policy: whether the message begins with the policy: its own recipe cannot run.
        parts: pairs of why, and what cannot run: a key, or the policy with its stages.
        way_out: what to choose instead; empty where the reasons say it.
    """

    def __init__(  # with defaults, because Ray's processes pickle it: made of its message, then filled
        self,
        message: str,
        *,
        names_policy: bool = False,
        parts: Sequence[tuple[str, str]] = (),
        way_out: str = "",
    ) -> None:
        super().__init__(message)
        self.names_policy = names_policy
        self.parts = tuple(parts)
        self.way_out = way_out


def cannot_run(config: Config, reasons: Mapping[str, Exception]) -> CannotRunHere:
    """Return the error; it names the policy where its own recipe cannot run, and keys that were set.

    Args:
        reasons: of each stage that cannot run, and of `images`, why not.
    """
    own = recipe(config.policy.name)
    backends = {part: _backend(config, part) for part in reasons}
    keys = {
        part: f"{'policy.images' if part == 'images' else f'optim/{part}'}={backend}"
        for part, backend in backends.items()
        if own.get(part) != backend
    }
    names = {part: keys.get(part, f"{part} on {backend}") for part, backend in backends.items()}
    alike: dict[str, list[str]] = {}
    for part, error in reasons.items():
        reason = error.reason if isinstance(error, WrongMachine) else str(error)
        alike.setdefault(reason, []).append(part)
    policy = f"policy={config.policy.name}"
    parts = []
    for reason, members in alike.items():
        parts += [(reason, keys[part]) for part in members if part in keys]
        stages = ", ".join(names[part] for part in members if part not in keys)
        parts += [(reason, f"{policy} ({stages})")] if stages else []
    wrong = [error.way_out for error in reasons.values() if isinstance(error, WrongMachine)]
    if len(keys) == len(reasons):
        message = "; ".join(f"{keys[part]} cannot run here: {error}" for part, error in reasons.items())
        return CannotRunHere(message, names_policy=False, parts=parts, way_out="; ".join(wrong))
    why = "; ".join(f"{reason} ({', '.join(names[part] for part in of)})" for reason, of in alike.items())
    without = f" without {', '.join(keys.values())}" if keys else ""
    way_out = f"choose policy=baseline{without}"
    also = "" if len(wrong) == len(reasons) else "or "
    message = f"{policy} cannot run here: {why}; {also}{way_out}"
    return CannotRunHere(message, names_policy=True, parts=parts, way_out=way_out)


def _backend(config: Config, part: str) -> str:
    if part == "images":
        return config.policy.images
    return backend_name(part, getattr(config.optim, part))
