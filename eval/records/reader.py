"""Read a run's folder back: complete records, the last attempt of each episode, and warnings."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eval.records.folders import EPISODES_FILE, inferences_file, require_records
from eval.records.foreign import DamagedRecords, parse_lines, split_lines
from eval.records.run_json import LEFT_OUT, RUN_FILE, read_run_json, unknown_keys
from eval.records.schema import EpisodeRecord, InferenceRecord
from policies.base import EpisodeKey
from policies.text import shorten


@dataclass(frozen=True)
class Run:
    """The records of a run, as read by `read_run`.

    Attributes:
        run: the content of `run.json`; empty, with a warning, when the run stopped before writing it.
        episodes: one per key, the last attempt, in the order of the file.
        superseded: errors that a later attempt of the same key replaced.
        warnings: what was dropped or not counted, and why.
    """

    run: Mapping[str, Any]
    episodes: tuple[EpisodeRecord, ...]
    inferences: tuple[InferenceRecord, ...]  # those of `episodes`
    superseded: tuple[EpisodeRecord, ...] = ()
    warnings: tuple[str, ...] = ()


def read_run(folder: Path) -> Run:
    """Read a run's records.

    A last line that a crash cut short is dropped with a warning. Of several lines with one key the last
    counts, if all before it are errors. Inferences of no counted episode are reported and left out. A run
    that was kept without its inferences has none, and a warning that says why.

    Raises:
        NoRecords: there are none.
        DamagedRecords: with file, line number and field, for a corrupt line, a file that is no plain file or
            too large, records of a newer version, or an episode recorded again after it finished, or without
            its inferences.
        OSError: a file cannot be read.
    """
    require_records(folder)
    warnings: list[str] = []
    run: dict[str, Any] = {}
    try:
        run = read_run_json(folder)
    except FileNotFoundError:
        warnings.append(f"{RUN_FILE} is missing: the run stopped before it was written")
    if unknown := unknown_keys(run):
        warnings.append(f"{RUN_FILE} has keys that this version does not know: {shorten(unknown)}")
    lines = list(enumerate(_read_lines(folder / EPISODES_FILE, EpisodeRecord, warnings), start=1))
    episodes, superseded = _last_attempts(folder / EPISODES_FILE, lines)
    inferences: tuple[InferenceRecord, ...] = ()
    if path := inferences_file(folder):
        records = _read_lines(path, InferenceRecord, warnings)
        inferences = _of_episodes(path, records, episodes, warnings)
    else:
        warnings.append(f"inferences were left out: {run[LEFT_OUT]}")
    return Run(run, tuple(episodes.values()), inferences, superseded, tuple(warnings))


def _last_attempts(
    path: Path, lines: list[tuple[int, EpisodeRecord]]
) -> tuple[dict[EpisodeKey, EpisodeRecord], tuple[EpisodeRecord, ...]]:
    episodes: dict[EpisodeKey, EpisodeRecord] = {}
    superseded = []
    for number, record in lines:
        earlier = episodes.pop(record.key, None)
        if earlier is not None:
            if earlier.success is not None:
                raise DamagedRecords(path, f":{number}: {record.key} is recorded again after it finished")
            superseded.append(earlier)
        episodes[record.key] = record
    return episodes, tuple(superseded)


def _of_episodes(
    path: Path,
    records: list[InferenceRecord],
    episodes: Mapping[EpisodeKey, EpisodeRecord],
    warnings: list[str],
) -> tuple[InferenceRecord, ...]:
    """Pick the inferences of the counted attempts: per key, the last series from call 0 of its length."""
    attempts: defaultdict[EpisodeKey, list[list[InferenceRecord]]] = defaultdict(list)
    for record in records:
        if record.call == 0 or not attempts[record.key]:
            attempts[record.key].append([])
        attempts[record.key][-1].append(record)
    counted: list[InferenceRecord] = []
    for key, episode in episodes.items():
        if episode.inferences == 0:
            continue
        matching = [attempt for attempt in attempts[key] if len(attempt) == episode.inferences]
        if not matching:
            held = [len(attempt) for attempt in attempts[key]]
            raise DamagedRecords(
                path, f": {key} made {episode.inferences} inferences, but the file holds {held}"
            )
        counted += matching[-1]
    left = len(records) - len(counted)
    if left:
        warnings.append(
            f"{path.name}: {left} of {len(records)} inferences are not counted: "
            "their episode was interrupted or retried"
        )
    return tuple(counted)


_Record = TypeVar("_Record", EpisodeRecord, InferenceRecord)


def _read_lines(path: Path, kind: type[_Record], warnings: list[str]) -> list[_Record]:
    """Parse each complete line."""
    lines, tail = split_lines(path)
    if tail:
        warnings.append(
            f"{path.name}:{len(lines) + 1}: dropped a last line that was cut short ({len(tail)} bytes)"
        )
    return list(parse_lines(path, lines, kind))
