"""Explain why a policy cannot run on this machine, in terms of the keys that its user chose."""

from collections.abc import Mapping
from dataclasses import dataclass

from eval.config.groups import backend_name, recipe
from eval.config.schema import Config
from optim.base import Reason


@dataclass(frozen=True)
class Explanation:
    """Why a policy, or a key that was set beside it, cannot run on this machine."""

    message: str  # all of it in one line
    names_policy: bool  # whether the message begins with the policy: its own recipe cannot run
    parts: tuple[tuple[str, str], ...]  # why, and what cannot run: a key, or the policy with its stages
    way_out: str  # what to choose instead; empty where the reasons say it


def explain(config: Config, reasons: Mapping[str, Reason]) -> Explanation:
    """Word `CannotRun.reasons`: name the policy where its own recipe cannot run, and keys that were set."""
    own = recipe(config.policy.name)
    backends = {part: _backend(config, part) for part in reasons}
    keys = {
        part: f"{'policy.images' if part == 'images' else f'optim/{part}'}={backend}"
        for part, backend in backends.items()
        if own.get(part) != backend
    }
    names = {part: keys.get(part, f"{part} on {backend}") for part, backend in backends.items()}
    alike: dict[str, list[str]] = {}
    for part, reason in reasons.items():
        alike.setdefault(reason.text, []).append(part)
    policy = f"policy={config.policy.name}"
    parts = []
    for text, members in alike.items():
        parts += [(text, keys[part]) for part in members if part in keys]
        stages = ", ".join(names[part] for part in members if part not in keys)
        parts += [(text, f"{policy} ({stages})")] if stages else []
    ways_out = [reason.way_out for reason in reasons.values() if reason.way_out]
    if len(keys) == len(reasons):
        message = "; ".join(f"{keys[part]} cannot run here: {reason}" for part, reason in reasons.items())
        return Explanation(message, False, tuple(parts), "; ".join(ways_out))
    why = "; ".join(
        f"{text} ({', '.join(names[part] for part in members)})" for text, members in alike.items()
    )
    without = f" without {', '.join(keys.values())}" if keys else ""
    way_out = f"choose policy=baseline{without}"
    also = "" if len(ways_out) == len(reasons) else "or "
    return Explanation(f"{policy} cannot run here: {why}; {also}{way_out}", True, tuple(parts), way_out)


def _backend(config: Config, part: str) -> str:
    if part == "images":
        return config.pi05_options().images
    return backend_name(part, getattr(config.optim, part))
