"""Engagement over several processes: sum calls and misses of each stage, and find faults."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from eval.records.schema import InferenceRecord

COUNTS = ("calls", "misses", "refused")
Engagement = dict[str, dict[str, Any]]
"""Stage to backend, calls, misses, refused calls and details (`policies.base.Policy.engagement`)."""


def join(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> Engagement:
    """Sum the counts; details are the last part's. ValueError where a stage changes its backend."""
    joined: Engagement = {}
    for part in parts:
        for stage, served in part.items():
            before = joined.get(stage)
            if before is None:
                joined[stage] = dict(served)
                continue
            if before["backend"] != served["backend"]:
                raise ValueError(f"{stage} was served by {before['backend']} and by {served['backend']}")
            sums = {name: before.get(name, 0) + served.get(name, 0) for name in COUNTS}
            joined[stage] = {**served, **sums}
    return joined


def at_least(
    engagement: Mapping[str, Mapping[str, Any]], inferences: Iterable[InferenceRecord]
) -> Engagement:
    """Count at least the calls that inferences prove: a killed process did not report its last ones."""
    proven: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for record in inferences:
        for stage, backend in record.backends.items():
            proven[stage, backend] += Fraction(1, record.batch)  # a batch is one call
    return {
        stage: {**served, "calls": max(served["calls"], math.ceil(proven[stage, served["backend"]]))}
        for stage, served in engagement.items()
    }


def faults(
    engagement: Mapping[str, Mapping[str, Any]], served: Iterable[str], *, misses_allowed: bool
) -> list[str]:
    """Name stages that did not engage: no call served, one refused, or one missed that may not be.

    Args:
        served: stages that inferences name; one that no process reported may have missed any number of calls.
    """
    problems = [
        f"{stage}: {served['backend']} served {served['calls']} calls, missed {served['misses']} "
        f"and refused {served.get('refused', 0)}"
        for stage, served in engagement.items()
        if served["calls"] == 0 or served.get("refused") or (served["misses"] > 0 and not misses_allowed)
    ]
    unreported = [stage for stage in served if stage not in engagement]
    lost = "no process could report how it was served"
    return [*problems, *(f"{stage}: {lost}" for stage in unreported)]
