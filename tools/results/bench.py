"""Committed latencies: medians of each bench.

Of its settings those count that have the shape of the first: the same policies, form, images and prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from optim.bench.tables import HOST_TO_HOST, components, problems, title
from tools.results.data import DATA, naming, read_json, report_of


@dataclass(frozen=True)
class Timing:
    """One policy at one number of denoise steps.

    Attributes:
        p50_ms: of each stage, of all stages together, and host to host.
        speed_up: p50 of the first policy over this one's, host to host.
        cosine: of its actions with those of eager float32, the least.
    """

    policy: str
    p50_ms: Mapping[str, float]
    speed_up: float
    cosine: float


@dataclass(frozen=True)
class Bench:
    """Policies of one shape, side by side.

    Attributes:
        name: of the folder that holds it.
        shape: form, images, tokens and horizon, in words.
        engines: policy to the TensorRT that it ran on.
        timings: denoise steps to policies, both in the order of the record.
    """

    name: str
    report: str
    device: str
    weights_label: str
    shape: str
    rounds: int
    engines: Mapping[str, str]
    timings: Mapping[int, tuple[Timing, ...]]


def read_benches(root: Path) -> list[Bench]:
    """Return every bench, the last recorded first.

    Raises:
        ValueError: naming file and key, where there is none, it is malformed, or a call missed its engine.
    """
    found: list[tuple[datetime, Bench]] = []
    for path in sorted((root / DATA).glob("*/bench.json")):
        record = read_json(path)
        with naming(path):
            time = datetime.fromisoformat(record["provenance"]["time"])
            found.append((time, _bench(record, path.parent.name, report_of(root, path.parent))))
    if not found:
        raise ValueError(f"{root / DATA} holds no */bench.json; add what optim.bench recorded")
    return [bench for _, bench in sorted(found, key=lambda item: item[0], reverse=True)]


def _bench(record: Mapping[str, Any], name: str, report: str) -> Bench:
    if missed := problems(record):
        raise ValueError(missed[0])
    first = record["settings"][0]
    gpu = record["provenance"]["gpu"]
    return Bench(
        name=name,
        report=report,
        device=record["provenance"]["cpu"]["model"] if gpu is None else gpu["name"],
        weights_label=first["policies"][0]["facts"]["weights_label"],
        shape=title(first).partition(", ")[2],  # without the denoise steps
        rounds=record["rounds"],
        engines={
            policy["label"]: stage["details"]["flavour"]
            for policy in first["policies"]
            for stage in policy["engagement"].values()
            if "flavour" in stage["details"]
        },
        timings={
            setting["policies"][0]["facts"]["denoise_steps"]: tuple(
                _timing(policy, setting["policies"][0]) for policy in setting["policies"]
            )
            for setting in record["settings"]
            if _shape(setting) == _shape(first)
        },
    )


def _shape(setting: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(of["label"], of["facts"]["form"], of["inputs"]) for of in setting["policies"]]


def _timing(policy: Mapping[str, Any], first: Mapping[str, Any]) -> Timing:
    found = {component.name: component for component in components(policy, first)}
    return Timing(
        policy=policy["label"],
        p50_ms={name: component.stats.p50_ms for name, component in found.items()},
        speed_up=found[HOST_TO_HOST].speedup,
        cosine=policy["parity"]["cosine"],
    )
