"""Repair records that a crash cut short: the last line, if it is cut, moves to a file beside them.

A line is cut when it has no line feed, or is no JSON, as the zeros that a loss of power leaves. Any other
line that cannot be read was written so, by another version or another hand.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eval.records.folders import EPISODES_FILE, INFERENCES_FILE
from eval.records.foreign import DamagedRecords, parse_lines, split_lines
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RecordingError
from policies.base import EpisodeKey
from policies.files import plain_opener

DROPPED = ".dropped"  # suffix of the file beside each, which keeps what was cut off
UNTOUCHED = "nothing was moved; go on with the version that wrote it, or start a new run"


def repair(folder: Path) -> list[str]:
    """Cut a last line that a crash left off each file, and describe each cut.

    Where that takes an inference of the last episode, its line goes too. Both move to a file beside the
    records, and the episode is run again.

    Raises:
        DamagedRecords: any other line cannot be read, or other inferences are missing; nothing was moved.
        RecordingError: the disk refuses.
    """
    files = (folder / EPISODES_FILE, folder / INFERENCES_FILE)
    (episode_lines, episode_tail), (inference_lines, inference_tail) = map(_split_off_cut, files)
    try:
        episodes = list(parse_lines(files[0], episode_lines, EpisodeRecord))
        inferences = list(parse_lines(files[1], inference_lines, InferenceRecord))
    except DamagedRecords as error:
        raise DamagedRecords(error.file, f"{error.problem}; {UNTOUCHED}") from error
    lost = without_inferences(episodes, inferences)
    if lost and not (inference_tail and lost == [len(episodes) - 1]):
        raise DamagedRecords(
            files[1], f": the inferences of {episodes[lost[0]].key} are not all in it; {UNTOUCHED}"
        )
    notes = []
    for file, tail in zip(files, (episode_tail, inference_tail), strict=True):
        if tail:
            _cut(file, tail)
            notes.append(f"{file.name}: dropped an unreadable last line of {len(tail)} bytes")
    if lost:
        _cut(files[0], episode_lines[-1] + b"\n")
        notes.append(f"{files[0].name}: dropped {episodes[-1].key}, whose inferences were lost")
    return notes


def _split_off_cut(file: Path) -> tuple[list[bytes], bytes]:
    """Split a file into its lines and the cut last one, with the line feed that it may have."""
    lines, tail = split_lines(file)
    if not tail and lines and not _is_json(lines[-1]):
        *lines, last = lines
        tail = last + b"\n"
    return lines, tail


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def without_inferences(episodes: Sequence[EpisodeRecord], inferences: Sequence[InferenceRecord]) -> list[int]:
    """List the places of episodes that were recorded with more inferences than there are."""
    held: Counter[EpisodeKey] = Counter()
    for record in inferences:
        held[record.key] = max(held[record.key], record.call + 1)
    return [i for i, episode in enumerate(episodes) if held[episode.key] < episode.inferences]


def _cut(path: Path, end: bytes) -> None:
    """Move the end of a file to the `DROPPED` file; a crash in between leaves it in both."""
    try:
        with open(path.with_name(path.name + DROPPED), "ab", opener=plain_opener) as file:
            file.write(end if end.endswith(b"\n") else end + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with open(path, "r+b", opener=plain_opener) as file:
            file.truncate(os.fstat(file.fileno()).st_size - len(end))
    except OSError as error:
        raise RecordingError(f"{path} cannot be repaired: {error}") from error
