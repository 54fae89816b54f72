"""Committed latencies: a table for each bench, and what its plot shows.

Of its settings those count that have the shape of the first: the same policies, form, images and prompts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.analysis.summary import is_random
from eval.records.schema import AROUND, HOST_TO_HOST
from eval.render.tables import Block, Sentence, Table, Written
from optim.bench.tables import Component, batch_of, components, problems, title
from policies.pi05.dims import STAGES
from tools.results.code import Commits
from tools.results.runs import DATA


@dataclass(frozen=True)
class Bench:
    """Policies of one shape, side by side.

    Attributes:
        name: of its report.
        code: the commit that has the bench's source folders.
        times: denoise steps to policy to component (a stage, or host to host), in the order of the record.
    """

    name: str
    record: Mapping[str, Any]
    device: str
    weights_label: str
    times: Mapping[int, Mapping[str, Mapping[str, Component]]]
    code: str

    @property
    def plot(self) -> str:
        """The file of the plot, beside the report."""
        return f"{self.name}_latency.svg"

    @property
    def description(self) -> str:
        """What the plot shows, for those who do not see it."""
        shown = (
            f"{policy} at {steps} steps {times[HOST_TO_HOST].stats.p50_ms:.1f} ms"
            for steps, policies in self.times.items()
            for policy, times in policies.items()
        )
        return f"Median latency by stage, {self.weights_label}: {', '.join(shown)}"


def read_benches(root: Path, commits: Commits) -> list[Bench]:
    """Read every bench, the last recorded first.

    Raises:
        ValueError: a call missed its engine, or no commit has its code, in the file that is named.
    """
    benches = []
    for path in (root / DATA).glob("*/bench.json"):
        record = json.loads(path.read_bytes())
        if missed := problems(record):
            raise ValueError(f"{path}: {missed[0]}")
        first, provenance = record["settings"][0], record["provenance"]
        times = {
            setting["policies"][0]["facts"]["denoise_steps"]: _times(setting)
            for setting in record["settings"]
            if _shape(setting) == _shape(first)
        }
        device = (provenance["gpu"] or {}).get("name") or provenance["cpu"]["model"]
        weights_label = first["policies"][0]["facts"]["weights_label"]
        code = commits.code(path, provenance)
        benches.append(Bench(path.parent.name, record, device, weights_label, times, code))
    return sorted(benches, key=lambda bench: _time(bench.record), reverse=True)


def latency(bench: Bench) -> list[Block]:
    """Present a bench: its setting, its plot, and a row for each policy."""
    [(most, first), *_] = bench.times.items()
    setting = bench.record["settings"][0]
    weights = f"weights `{bench.weights_label}`"
    if is_random(bench.weights_label):
        weights = f"**{bench.weights_label}**: not of the weights whose success is above"
    about = (
        f"Latency of {', '.join(first)}, {weights}. {bench.device}, batch {batch_of(setting)}, "
        f"medians of n = {bench.record['rounds']} rounds each; {title(setting).partition(', ')[2]}. "
        f"Every backend served every call; code: {bench.code} ([report]({bench.name}.md))."
    )
    columns = (
        "policy",
        *(f"{part}, {most} steps" for part in (*STAGES, AROUND)),
        *(f"{HOST_TO_HOST}, {steps} steps" for steps in bench.times),
        f"speed-up, {most} steps",
        f"least cosine with float32, {most} steps",
    )
    rows = [
        (
            _with_engine(policy),
            *(f"{times[part].stats.p50_ms:.1f} ms" for part in (*STAGES, AROUND)),
            *(f"{at[policy['label']][HOST_TO_HOST].stats.p50_ms:.1f} ms" for at in bench.times.values()),
            f"{times[HOST_TO_HOST].speedup:.2f}x",
            f"{policy['parity']['cosine']:.6f}",
        )
        for policy, times in zip(setting["policies"], first.values(), strict=True)
    ]
    return [Sentence(about), Sentence(Written(f"![{bench.description}]({bench.plot})")), Table(columns, rows)]


def _shape(setting: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    batch = batch_of(setting)
    return [
        (batch, policy["label"], policy["facts"]["form"], policy["inputs"]) for policy in setting["policies"]
    ]


def _times(setting: Mapping[str, Any]) -> dict[str, dict[str, Component]]:
    first, *_ = policies = setting["policies"]
    return {
        policy["label"]: {component.name: component for component in components(policy, first)}
        for policy in policies
    }


def _time(record: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(record["provenance"]["time"])


def _with_engine(policy: Mapping[str, Any]) -> str:
    """Label a policy, with the TensorRT that it ran on, if any."""
    flavours = {stage["details"].get("flavour") for stage in policy["engagement"].values()} - {None}
    return f"{policy['label']} ({', '.join(sorted(flavours))})" if flavours else str(policy["label"])
