"""Latency statistics: percentiles, mean and rate of a list of milliseconds."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.records.schema import AROUND, InferenceRecord, around_ms

# The range of n episodes holds the median with 1 - 2 / 2^n: 94 % for 5, 88 % for 4.
ENOUGH_EPISODES = 5
ENOUGH_FOR = {"p95": 20, "p99": 100}  # latencies; a percentile of fewer is near the maximum


@dataclass(frozen=True)
class LatencyStats:
    """Statistics of n latencies.

    Attributes:
        n: how many latencies they stand on; p99 of n < 100 is near the maximum.
        mean_ms, p50_ms, p95_ms, p99_ms: milliseconds.
        hz: 1000 / mean_ms, the rate of inferences made back to back.
    """

    n: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    hz: float


def latency_stats(latencies_ms: Sequence[float]) -> LatencyStats:
    """Describe latencies in milliseconds; their order matters not even in the last bit.

    Percentiles are NumPy's default, `method="linear"`: with the n values sorted, percentile q lies at
    position (n - 1) * q / 100 from 0, interpolated linearly between its neighbours.

    Raises:
        ValueError: when there are none, or one is not positive and finite.
    """
    if not latencies_ms:
        raise ValueError("latency statistics need at least one latency, got none")
    for latency_ms in latencies_ms:
        if not 0 < latency_ms < math.inf:
            raise ValueError(f"a latency must be positive and finite, got {latency_ms} ms")
    mean_ms = math.fsum(latencies_ms) / len(latencies_ms)  # fsum is exact, so the order drops out
    p50_ms, p95_ms, p99_ms = (float(p) for p in np.percentile(latencies_ms, [50, 95, 99], method="linear"))
    return LatencyStats(len(latencies_ms), mean_ms, p50_ms, p95_ms, p99_ms, hz=1000 / mean_ms)


def latencies(
    inferences: Iterable[InferenceRecord], backends: Mapping[str, str]
) -> tuple[LatencyStats | None, dict[str, LatencyStats]]:
    """Describe whole inferences, each stage, and what is around the stages; None and nothing without any.

    Calls that another than the stage's backend (`backends`) served have a row of their own.
    """
    infer_ms: list[float] = []
    around: list[float] = []
    stages_ms: defaultdict[str, list[float]] = defaultdict(list)
    for record in inferences:
        infer_ms.append(record.infer_ms)
        if record.stage_ms:
            around.append(around_ms(record.infer_ms, record.stage_ms))
        for stage, stage_ms in record.stage_ms.items():
            served = record.backends.get(stage)
            strange = stage in backends and served is not None and served != backends[stage]
            stages_ms[f"{stage} by {served}" if strange else stage].append(stage_ms)
    # Stages in the order in which a record names them: that of the pipeline.
    every = stages_ms | ({AROUND: around} if around else {})
    stages = {stage: latency_stats(values) for stage, values in every.items()}
    return (latency_stats(infer_ms) if infer_ms else None), stages
