"""What a report says besides numbers: episodes to look at, where each run comes from, how to repeat it."""

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.analysis.overview import Entry, Overview
from eval.analysis.summary import SuccessRate
from eval.records.schema import EpisodeRecord
from eval.report.frames import Frames
from policies.text import pluralize

FindFrames = Callable[[Path, EpisodeRecord], Frames]

PICTURED, PICTURED_OF_LIST = 24, 6  # episodes with pictures, at most: two runs, two frames, some 10 kB each
UNKNOWN = "unknown"
ABSENT = "not installed"
NOT_REPEATED = ("hydra.run.dir=", "hydra.sweep", "tracking.group=", "resume=")


@dataclass(frozen=True)
class Attempt:
    """One run's attempt at an episode; `record` is None where the run does not have it."""

    entry: Entry
    record: EpisodeRecord | None
    frames: Frames


@dataclass(frozen=True)
class EpisodeGallery:
    """An episode with what each of the runs made of it."""

    key: str
    instruction: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class EpisodeList:
    """Episodes of one kind; `named` are those beyond the pictured, a text for each task."""

    title: str
    pictured: tuple[EpisodeGallery, ...]
    named: tuple[str, ...]


@dataclass(frozen=True)
class TaskRow:
    """One task, and each run's success on it; None where a run does not have it."""

    suite: str
    task_id: int
    instruction: str
    cells: tuple[SuccessRate | None, ...]


@dataclass(frozen=True)
class Facts:
    """What is the same in all runs, and what is not, with a value for each run."""

    same: Mapping[str, str]
    different: Mapping[str, tuple[str, ...]]


def episode_lists(overview: Overview, find: FindFrames) -> list[EpisodeList]:
    """List the episodes in which a run and the first one disagree; of runs without a comparison, those that
    did not succeed."""
    base = overview.entries[0]
    wanted: list[tuple[str, Sequence[str], tuple[Entry, ...]]] = [
        (
            f"{arms.perturbed} {arms.suite}: lost to the perturbation, run {arms.control} succeeded",
            arms.comparison.lost,
            (overview.entries[arms.perturbed - 1],),
        )
        for arms in overview.arms
        if arms.comparison is not None and arms.comparison.lost
    ]
    for entry in overview.entries:
        result = entry.comparison
        if result is not None:
            name = f"{entry.number} {entry.label}"
            lists = [(f"{name}: lost, the first run succeeded", result.lost), (f"{name}: won", result.won)]
            runs: tuple[Entry, ...] = (base, entry)
        else:
            failed = [str(e.key) for e in sorted(entry.run.episodes, key=lambda e: e.key) if not e.success]
            lists = [(f"{entry.number} {entry.label}: did not succeed", tuple(failed))]
            runs = (entry,)
        wanted += [(title, keys, runs) for title, keys in lists if keys]
    pictured = min(PICTURED_OF_LIST, max(1, PICTURED // max(1, len(wanted))))
    return [_episodes(title, keys, entries, find, pictured) for title, keys, entries in wanted]


def task_rows(overview: Overview) -> list[TaskRow]:
    """A row for each task of any run."""
    by_run = [
        {(task.suite, task.task_id): task for task in entry.summary.tasks} for entry in overview.entries
    ]
    every = {key: task for tasks in by_run for key, task in tasks.items()}
    return [
        TaskRow(
            *key,
            instruction=every[key].instruction,
            cells=tuple(tasks[key].success if key in tasks else None for tasks in by_run),
        )
        for key in sorted(every)
    ]


def facts(overview: Overview) -> Facts:
    """Sort where the runs come from into what all share and what they do not."""
    each = [dict(_facts(entry)) for entry in overview.entries]
    names = list(dict.fromkeys(name for one in each for name in one))
    same: dict[str, str] = {}
    different: dict[str, tuple[str, ...]] = {}
    for name in names:
        values = tuple(one.get(name, UNKNOWN) for one in each)
        if set(values) == {ABSENT}:
            continue
        if len(set(values)) == 1:
            same[name] = values[0]
        else:
            different[name] = values
    return Facts(same, different)


def commands(entry: Entry) -> list[str]:
    """The lines that run an entry again, from a clean clone."""
    commit = entry.summary.commit
    lines = [] if commit is None else [f"git checkout {commit}"]
    parts: Sequence[Mapping[str, Any]] = entry.run.run.get("parts") or ()
    lines += [_command(part) for part in (parts or [entry.run.run])]
    if parts:
        lines.append(".venv/bin/python -m eval.merge PART PART ...")
    return lines


def _command(run: Mapping[str, Any]) -> str:
    overrides = [text for text in run.get("overrides") or () if not text.startswith(NOT_REPEATED)]
    return shlex.join([".venv/bin/python", "-m", "eval", *overrides])


def _episodes(
    title: str, keys: Sequence[str], entries: Sequence[Entry], find: FindFrames, num_pictured: int
) -> EpisodeList:
    by_key = [{str(episode.key): episode for episode in entry.run.episodes} for entry in entries]
    pictured = []
    for key in keys[:num_pictured]:
        records = [episodes.get(key) for episodes in by_key]
        attempts = tuple(
            Attempt(entry, record, Frames() if record is None else find(entry.folder, record))
            for entry, record in zip(entries, records, strict=True)
        )
        instruction = next(record.instruction for record in records if record is not None)
        pictured.append(EpisodeGallery(key, instruction, attempts))
    return EpisodeList(f"{title} ({len(keys)})", tuple(pictured), _by_task(keys[num_pictured:], by_key))


def _by_task(keys: Sequence[str], by_key: Sequence[Mapping[str, EpisodeRecord]]) -> tuple[str, ...]:
    tasks: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        record = next(episodes[key] for episodes in by_key if key in episodes)
        tasks[f"{record.suite} task {record.task_id} seed {record.seed}"].append(str(record.episode))
    return tuple(f"{task}: {', '.join(episodes)}" for task, episodes in tasks.items())


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    run, summary = entry.run.run, entry.summary
    origin: Mapping[str, Any] = run.get("provenance") or {}
    about: Mapping[str, Any] = run.get("policy") or {}
    simulator: Mapping[str, Any] = run.get("simulator") or {}
    yield "policy", summary.policy
    yield "setting", summary.setting or "no network"
    yield "checkpoint", summary.checkpoint or "none"
    yield "SHA-256 of weights", summary.checkpoint_sha256 or "none"
    yield "SHA-256 of norm stats", about.get("norm_stats_sha256") or UNKNOWN
    yield "suites", ", ".join(summary.suites)
    planned = "" if summary.planned_episodes is None else f" of {summary.planned_episodes} planned"
    yield "episodes", f"{summary.episodes}{planned}"
    yield "seeding, seed", f"{summary.seeding}, {', '.join(str(s) for s in _seeds(entry))}"
    yield "overrides", " ".join(run.get("overrides") or ()) or "none"
    yield (
        "commit",
        f"{summary.commit or UNKNOWN}{' with uncommitted changes' if summary.commit_dirty else ''}",
    )
    if summary.sources is not None:
        yield "sources", summary.sources
    yield "time", str(origin.get("time") or UNKNOWN)
    yield "GPU", _gpu(origin.get("gpu")) if "gpu" in origin else UNKNOWN
    yield "CPU", _cpu(origin.get("cpu") or {})
    yield "platform", str(origin.get("platform") or UNKNOWN)
    yield "OpenGL", f"{summary.gl_backend or UNKNOWN}, {simulator.get('gl_renderer') or 'renderer unknown'}"
    yield "Python", str(origin.get("python") or UNKNOWN)
    for package, version in (origin.get("packages") or {}).items():
        yield package, str(version or ABSENT)


def _seeds(entry: Entry) -> list[int]:
    return sorted({episode.seed for episode in entry.run.episodes})


def _gpu(gpu: Mapping[str, Any] | None) -> str:
    if gpu is None:
        return "none"
    return f"{gpu['name']}, driver {gpu.get('driver')}, CUDA {gpu.get('cuda')}"


def _cpu(cpu: Mapping[str, Any]) -> str:
    if not cpu:
        return UNKNOWN
    cores, threads = (cpu.get(name, UNKNOWN) for name in ("cores", "torch_threads"))
    return f"{cpu.get('model')}, {pluralize(cores, 'core')}, {pluralize(threads, 'torch thread')}"
