"""Runs side by side, as a pure function: success, latency, verdict against the first, Pareto front."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.analysis.arms import Arms, find_arms
from eval.analysis.comparable import Names, NotComparable
from eval.analysis.comparison import Comparison, compare, engagement_problems
from eval.analysis.latency import ENOUGH_EPISODES, LatencyStats
from eval.analysis.summary import Summary, summarise
from eval.records.reader import Run
from eval.records.schema import AROUND, HOST_TO_HOST
from policies.text import pluralize, shorten

FIRST_AND_THIS: Names = ("the first run", "this run")

# Overrides that no label needs: the other columns of a table have them, or they are of one machine.
NOT_IN_LABELS = ("policy=", "denoise.steps=", "hydra.", "tracking", "+experiment=", "video=", "runner")


@dataclass(frozen=True)
class Source:
    """A run and where it is from.

    Attributes:
        run: its records; None when there are none to read.
        reason: why `run` is None.
    """

    folder: Path
    run: Run | None
    reason: str | None = None


@dataclass(frozen=True)
class Spread:
    """Percentiles of n latencies in milliseconds."""

    n: int
    p5_ms: float
    p25_ms: float
    p50_ms: float
    p75_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        number: its row, from 1; label: policy, denoise steps, and what else tells it from the others.
        flags: what must be known before its numbers are believed.
        spreads: stage, or `HOST_TO_HOST`, to the latencies that `under_load` says; without warm-up.
        under_load: whether all its latencies are of inferences that others ran beside.
        speed_up: p50 of the first run over this one's, host to host; None under load, on another device, and
            where either has fewer than `ENOUGH_EPISODES` quiet episodes.
        comparison: against the first run; None for itself, and where `not_comparable` says why.
        problems: why its backends cannot be said to have served every call.
        on_front: whether no other run is at least as good in success and latency, and better in one.
    """

    number: int
    label: str
    folder: Path
    run: Run
    summary: Summary
    flags: tuple[str, ...]
    spreads: Mapping[str, Spread]
    under_load: bool
    speed_up: float | None
    comparison: Comparison | None
    not_comparable: str | None
    problems: tuple[str, ...]
    on_front: bool

    @property
    def latency(self) -> LatencyStats | None:
        """Host to host, of one request at a time on an otherwise idle machine."""
        return self.summary.infer

    @property
    def verdict(self) -> str:
        """Against the first run, in words."""
        if self.problems:
            return "not engaged"
        if self.comparison is not None:
            return self.comparison.verdict
        return "-" if self.not_comparable is None else "not comparable"

    def to_dict(self) -> dict[str, Any]:
        """In dicts, lists and scalars, without its records."""
        return {
            "number": self.number,
            "label": self.label,
            "folder": str(self.folder),
            "flags": list(self.flags),
            "verdict": self.verdict,
            "not_comparable": self.not_comparable,
            "problems": list(self.problems),
            "speed_up": self.speed_up,
            "on_front": self.on_front,
            "summary": self.summary.to_dict(),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
        }


@dataclass(frozen=True)
class Overview:
    """Runs side by side; the first that has numbers is what the others are compared with.

    Attributes:
        margin: the loss of success that is accepted, in percentage points.
        missing: folders that hold no episode, and why.
        arms: perturbed runs beside their control arms, where both are among them.
        first_is_missing: whether the run that was named first is among those.
    """

    entries: tuple[Entry, ...]
    missing: tuple[tuple[Path, str], ...]
    margin: float
    first_is_missing: bool = False
    arms: tuple[Arms, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """The stages that any run has, in the order of the pipeline, then `AROUND` and `HOST_TO_HOST`."""
        given = {name: None for entry in self.entries for name in entry.spreads}
        last = [name for name in (AROUND, HOST_TO_HOST) if name in given]
        return (*(name for name in given if name not in last), *last)

    def to_dict(self) -> dict[str, Any]:
        """In dicts, lists and scalars, ready for JSON."""
        return {
            "margin": self.margin,
            "first_is_missing": self.first_is_missing,
            "arms": [arms.to_dict() for arms in self.arms],
            "runs": [entry.to_dict() for entry in self.entries],
            "missing": [{"folder": str(folder), "reason": reason} for folder, reason in self.missing],
        }


def overview(sources: Sequence[Source], margin: float) -> Overview:
    """Set runs side by side, in their order.

    Raises:
        ValueError: none of them holds an episode, or the records of one contradict one another.
    """
    recorded: list[tuple[Path, Run]] = []
    missing: list[tuple[Path, str]] = []
    for source in sources:
        if source.run is not None and source.run.episodes:
            recorded.append((source.folder, source.run))
        else:
            missing.append((source.folder, source.reason or "no episode is recorded"))
    if not recorded:
        reasons = shorten((f"{folder}: {reason}" for folder, reason in missing), "; ")
        raise ValueError(f"no episode to report on: {reasons or 'no run was given'}")
    summaries = [_summary(folder, run) for folder, run in recorded]
    labels = _labels([run for _, run in recorded], summaries)
    base, base_summary = recorded[0][1], summaries[0]
    entries = []
    for number, ((folder, run), summary, label) in enumerate(
        zip(recorded, summaries, labels, strict=True), 1
    ):
        comparison, reason = (None, None) if number == 1 else _compared(base, run, margin)
        entries.append(
            Entry(
                number=number,
                label=label,
                folder=folder,
                run=run,
                summary=summary,
                flags=_flags(run, summary),
                spreads=spreads(run, under_load=summary.infer is None),
                under_load=summary.infer is None and summary.infer_under_load is not None,
                speed_up=_speed_up(base, run, base_summary, summary) if number > 1 else None,
                comparison=comparison,
                not_comparable=reason,
                problems=engagement_problems(run, summary.engagement),
                on_front=False,
            )
        )
    first_is_missing = recorded[0][0] != sources[0].folder
    arms = find_arms([run for _, run in recorded], summaries, margin)
    return Overview(_with_front(entries), tuple(missing), margin, first_is_missing, arms)


def spreads(run: Run, *, under_load: bool) -> dict[str, Spread]:
    """The spread of each stage and host to host, of inferences under load or of the others."""
    wanted = "under load" if under_load else "alone"
    times: defaultdict[str, list[float]] = defaultdict(list)
    for record in run.inferences:
        if record.condition == wanted:
            for name, milliseconds in record.times_ms.items():
                times[name].append(milliseconds)
    return {
        name: Spread(len(values), *(float(p) for p in np.percentile(values, [5, 25, 50, 75, 95])))
        for name, values in times.items()
    }


def _summary(folder: Path, run: Run) -> Summary:
    try:
        return summarise(run)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _compared(base: Run, run: Run, margin: float) -> tuple[Comparison | None, str | None]:
    try:
        return compare(base, run, margin, FIRST_AND_THIS), None
    except NotComparable as error:
        return None, str(error)


def _labels(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[str]:
    """Name policy, denoise steps, and the overrides that not all share; a number where that repeats."""
    overrides = [
        [text for text in run.run.get("overrides") or () if not text.startswith(NOT_IN_LABELS)]
        for run in runs
    ]
    shared = set.intersection(*map(set, overrides))
    counts: Counter[str] = Counter()
    labels = []
    for run, summary, texts in zip(runs, summaries, overrides, strict=True):
        steps = (run.run.get("policy") or {}).get("denoise_steps")
        parts = [
            summary.policy,
            None if steps is None else pluralize(steps, "step"),
            *(text for text in texts if text not in shared),
        ]
        label = ", ".join(part for part in parts if part)
        counts[label] += 1
        labels.append(label if counts[label] == 1 else f"{label} ({counts[label]})")
    return labels


def _flags(run: Run, summary: Summary) -> tuple[str, ...]:
    """Say what must be known of a run before its numbers are believed, in a few words each."""
    facts = run.run
    shard = (facts.get("config") or {}).get("shard")
    parts = len(facts.get("parts") or ())
    flags = (
        summary.weights_label if summary.random_weights else None,
        "latency under load" if summary.infer is None and summary.infer_under_load else None,
        _few_quiet(summary),
        "partly under load" if summary.infer and summary.infer_under_load else None,
        f"{pluralize(parts, 'part')} joined" if parts else f"shard {shard}" if shard else None,
        "resumed" if facts.get("resumed") else None,
        "run.json is missing" if not facts else None,
        "not finished" if facts.get("finished") is False else None,
        pluralize(summary.total.errors, "error") if summary.total.errors else None,
        "uncommitted changes" if summary.commit_dirty else None,
    )
    return tuple(flag for flag in flags if flag)


def _few_quiet(summary: Summary) -> str | None:
    if summary.infer is None or summary.quiet_episodes >= ENOUGH_EPISODES:
        return None
    return f"latency of {pluralize(summary.quiet_episodes, 'quiet episode')}"


def _device(run: Run) -> Any:
    return (run.run.get("policy") or {}).get("device")


def _speed_up(base: Run, run: Run, base_summary: Summary, summary: Summary) -> float | None:
    if base_summary.infer is None or summary.infer is None or _device(base) != _device(run):
        return None
    if min(base_summary.quiet_episodes, summary.quiet_episodes) < ENOUGH_EPISODES:
        return None
    return base_summary.infer.p50_ms / summary.infer.p50_ms


def _with_front(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Set `on_front`.

    Only runs that can be compared with the first are in question: trained weights, the same episodes and
    device, backends that served every call, latencies not under load.
    """
    base = entries[0]
    points = {
        entry.number: (entry.summary.infer.p50_ms, entry.summary.total.rate)
        for entry in entries
        if entry.summary.infer is not None
        and entry.summary.total.rate is not None
        and not entry.summary.random_weights
        and not entry.problems
        and (entry is base or entry.comparison is not None)
        and _device(entry.run) == _device(base.run)
    }
    front = {
        number
        for number, point in points.items()
        if not any(_beats(other, point) for other in points.values())
    }
    return tuple(replace(entry, on_front=entry.number in front) for entry in entries)


def _beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
    return other != point and other[0] <= point[0] and other[1] >= point[1]
