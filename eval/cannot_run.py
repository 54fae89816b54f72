"""Why a policy cannot run on this machine, in the words of what its user chose."""

from collections.abc import Mapping

from eval.choices import backend_name, recipe
from eval.schema import Config
from optim.requirements import WrongMachine


def cannot_run(config: Config, reasons: Mapping[str, Exception]) -> str:
    """Return one line: it names the policy where its own recipe cannot run, and keys that were set beside it.

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
    if len(keys) == len(reasons):
        return "; ".join(f"{keys[part]} cannot run here: {error}" for part, error in reasons.items())
    parts: dict[str, list[str]] = {}
    for part, error in reasons.items():
        reason = error.reason if isinstance(error, WrongMachine) else str(error)
        parts.setdefault(reason, []).append(keys.get(part, f"{part} on {backends[part]}"))
    why = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in parts.items())
    choose = "choose" if all(isinstance(error, WrongMachine) for error in reasons.values()) else "or choose"
    without = f" without {', '.join(keys.values())}" if keys else ""
    return f"policy={config.policy.name} cannot run here: {why}; {choose} policy=baseline{without}"


def _backend(config: Config, part: str) -> str:
    if part == "images":
        return config.policy.images
    return backend_name(part, getattr(config.optim, part))
