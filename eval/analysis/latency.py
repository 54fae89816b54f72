"""Latency statistics: percentiles, mean and rate of a list of milliseconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
