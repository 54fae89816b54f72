"""Repair records that a crash cut short: unreadable lines move to a file beside them."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from eval.records.folders import EPISODES_FILE, INFERENCES_FILE
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RecordingError
from policies.base import EpisodeKey

DROPPED = ".dropped"  # suffix of the file beside each, which keeps the unreadable lines


def repair(folder: Path) -> list[str]:
    """Cut unreadable ends off the records, and describe each cut.

    That is a line cut short or damaged, and an episode whose inferences were lost with it. They move to a
    file beside the records, and their episodes are run again.
    """
    notes = [
        *_cut_unreadable(folder / EPISODES_FILE, EpisodeRecord),
        *_cut_unreadable(folder / INFERENCES_FILE, InferenceRecord),
    ]
    path = folder / EPISODES_FILE
    lost = set(_without_inferences(folder)) if notes else set()
    while lost and (line := _last_line(path)):
        key = EpisodeRecord(**json.loads(line)).key
        if key not in lost:
            break  # `read_run` will name what is wrong
        _cut(path, line)
        lost.remove(key)
        notes.append(f"{path.name}: dropped {key}, whose inferences were lost")
    return notes


def _cut_unreadable(path: Path, kind: type[EpisodeRecord | InferenceRecord]) -> Iterator[str]:
    while line := _last_line(path):
        if line.endswith(b"\n") and _is_record(line, kind):
            return
        _cut(path, line)
        yield f"{path.name}: dropped an unreadable last line of {len(line)} bytes"


def _is_record(line: bytes, kind: type[EpisodeRecord | InferenceRecord]) -> bool:
    try:
        kind(**json.loads(line))
    except (ValueError, TypeError):
        return False
    return True


def _last_line(path: Path) -> bytes:
    """With its line feed where it has one; empty for an empty file."""
    data = path.read_bytes()
    return data[data.rfind(b"\n", 0, max(len(data) - 1, 0)) + 1 :]


def _cut(path: Path, line: bytes) -> None:
    """Move the last line to the `DROPPED` file; a crash in between leaves it in both."""
    try:
        with path.with_name(path.name + DROPPED).open("ab") as file:
            file.write(line if line.endswith(b"\n") else line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.truncate(path, path.stat().st_size - len(line))
    except OSError as error:
        raise RecordingError(f"{path} cannot be repaired: {error}") from error


def _without_inferences(folder: Path) -> Iterator[EpisodeKey]:
    """Yield the keys of episodes that were recorded with more inferences than the file holds."""
    held: Counter[EpisodeKey] = Counter()
    for line in (folder / INFERENCES_FILE).read_bytes().splitlines():
        record = InferenceRecord(**json.loads(line))
        held[record.key] = max(held[record.key], record.call + 1)
    for line in (folder / EPISODES_FILE).read_bytes().splitlines():
        episode = EpisodeRecord(**json.loads(line))
        if held[episode.key] < episode.inferences:
            yield episode.key
