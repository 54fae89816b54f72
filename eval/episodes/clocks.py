"""From the configuration to a clock: whose latency is charged."""

import math
from pathlib import Path
from typing import Any

from eval.config.schema import MEASURED, Config, ConfigError, TimedClockConfig
from eval.episodes.clock import FREE, Clock, Drawn, Fixed, Latency, Measured
from policies.files import expand_home, read_json_object


def make_clock(config: Config) -> Clock:
    """Make the run's clock; ConfigError for a bench that does not say the latency of its policy."""
    chosen = config.clock
    if not isinstance(chosen, TimedClockConfig):
        return FREE
    latency = _latency(config, chosen)
    return Clock(chosen.name, latency, chosen.speed, chosen.guide)  # type: ignore[arg-type]  # checked name


def _latency(config: Config, chosen: TimedClockConfig) -> Latency:
    if chosen.latency_from is not None:
        policy = chosen.latency_policy or config.policy.name
        return Drawn(_samples_ms(expand_home(chosen.latency_from), policy, config.denoise.steps))
    return Measured() if chosen.latency_ms == MEASURED else Fixed(float(chosen.latency_ms))


def _samples_ms(path: Path, policy: str, steps: int | None) -> tuple[float, ...]:
    """Read the latencies host to host of the one row of a bench that has this policy and these steps."""
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        for setting in read_json_object(path)["settings"]:
            for row in setting["policies"] if setting.get("batch", 1) == 1 else ():
                rows.append((f"{row['facts']['policy']} {row['facts']['denoise_steps']}", row))
        own = [row for name, row in rows if name == f"{policy} {steps}"]
        samples = [float(sample["infer_ms"]) for row in own for sample in row["samples"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"clock.latency_from={path} must be the bench.json of optim.bench, got {error!r}"
        ) from error
    if len(own) != 1 or not samples:
        known = ", ".join(dict.fromkeys(name for name, _ in rows)) or "none"
        raise ConfigError(
            f"clock.latency_from={path} must have one row of policy={policy} with denoise.steps={steps}, got "
            f"{len(own)}; it has (policy, steps): {known}; name one with clock.latency_policy"
        )
    if not all(0 < sample < math.inf for sample in samples):
        raise ConfigError(f"clock.latency_from={path} has latencies that are not positive and finite")
    return tuple(samples)
