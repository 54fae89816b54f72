"""Write run records: one JSON line per episode and inference, on the disk before the next episode begins.

A run is a folder with `episodes.jsonl`, `inferences.jsonl` and `run.json`. They are the truth; summaries are
pure functions of them.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eval.records.folders import (
    EPISODES_FILE,
    INFERENCES_FILE,
    WANDB,
    refuse_kept,
    refuse_used,
    remove_cut_short,
    require_records,
)
from eval.records.foreign import MOST_LINE
from eval.records.run_json import FORMAT, FORMAT_KEY, RUN_FILE
from eval.records.schema import EpisodeRecord, InferenceRecord, to_json, to_plain
from policies.base import EpisodeKey
from policies.files import plain_opener, refuse_links, sync, write_atomic

FOLDERS = ("videos", WANDB)  # that a run makes in its own
WAY_OUT = "free space and go on with resume"


class RecordingError(RuntimeError):
    """The disk refused a record: the run must stop, because nothing after it would be kept."""


class RunWriter:
    """Appends the records of a run to a new folder, or with `resume` to one that holds some.

    Non-obvious behaviors:
        A folder has one writer at a time, also when processes of several machines share the file system.
        Inferences are written as they happen, and forced to the disk before their episode's line: an episode
        line always has its inferences, and those of an interrupted episode stay behind, which `read_run`
        reports.

    Raises:
        FileExistsError: the folder already holds records, as `refuse_used` says; FileNotFoundError: with
            `resume`, it holds none.
        NotPlain: the folder holds a link, or something else that is neither a file nor a folder.
        RecordingError: another process writes to the folder; and from every method that writes, when the
            disk refuses; files end with a complete line.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        if resume:
            require_records(folder)
            refuse_kept(folder)
        else:
            refuse_used(folder)
            folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder, None if resume else FOLDERS, skip=[WANDB])
        self.folder = folder
        self._inferences = _open(folder / INFERENCES_FILE)
        self._episodes = _open(folder / EPISODES_FILE)
        self._lock()
        if not resume:
            self._refuse_used_meanwhile()
        remove_cut_short(folder)
        self._counts: Counter[EpisodeKey] = Counter()  # inferences of unfinished episodes
        self._finished: set[EpisodeKey] = set()
        sync(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_inference(self, record: InferenceRecord) -> None:
        """Append one inference.

        Raises ValueError where its call is not the next one of its episode; for the rest see `to_plain`.
        """
        expected = self._counts[record.key]
        if record.call != expected:
            raise ValueError(f"{record.key}: inference call must be {expected}, got {record.call}")
        _append(self._inferences, _json_line(record))
        self._counts[record.key] += 1

    def add_episode(self, record: EpisodeRecord) -> None:
        """Append one episode; it and its inferences are on the disk when this returns.

        Raises ValueError where it has finished before, or `inferences` is not the number added; for the rest
        see `to_plain`.
        """
        if record.key in self._finished:
            raise ValueError(f"{record.key} has finished and is recorded; only an error may be tried again")
        line = _json_line(record)
        added = self._counts[record.key]
        if record.inferences != added:
            raise ValueError(
                f"{record.key}: inferences is {record.inferences}, but {added} were added; count those added"
            )
        _append(self._inferences, b"", sync=True)
        _append(self._episodes, line, sync=True)
        del self._counts[record.key]
        if record.success is not None:
            self._finished.add(record.key)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace `run.json` in one step: a reader sees the old content or the new, never a part.

        After an error of `to_plain` the old file stays.
        """
        text = to_json(
            {FORMAT_KEY: FORMAT} | {key: item for key, item in run.items() if key != FORMAT_KEY}, RUN_FILE
        )
        try:
            write_atomic(self.folder / RUN_FILE, text, durable=True)
        except OSError as error:
            raise RecordingError(
                f"{self.folder / RUN_FILE} cannot be written: {error}; {WAY_OUT}={self.folder}"
            ) from error

    def continue_after(self, records: Iterable[EpisodeRecord]) -> None:
        """Refuse from now on to record again what these records show as finished."""
        self._finished |= {record.key for record in records if record.success is not None}

    def _lock(self) -> None:
        """Keep other writers out until this one is closed or its process ends, even by a kill."""
        try:
            fcntl.flock(self._episodes, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise RecordingError(
                f"{self.folder} is being written by another process; wait until it has ended"
            ) from error

    def _refuse_used_meanwhile(self) -> None:
        """Raise FileExistsError where another process recorded a run here before this one had the lock."""
        try:
            refuse_used(self.folder)
        except FileExistsError:
            self.close()
            raise

    def close(self) -> None:
        """Close the files; calling it again does nothing."""
        self._inferences.close()
        self._episodes.close()


def _open(path: Path) -> FileIO:
    return open(path, "ab", buffering=0, opener=plain_opener)


def _json_line(record: EpisodeRecord | InferenceRecord) -> bytes:
    line = json.dumps(to_plain(vars(record), str(record.key)), allow_nan=False).encode() + b"\n"
    if len(line) > MOST_LINE:
        raise ValueError(f"{record.key}: a record must have at most {MOST_LINE} bytes, got {len(line)}")
    return line


def _append(file: FileIO, data: bytes, *, sync: bool = False) -> None:
    """Append all of `data`, with `sync` forced to the disk; after a failure the file is as long as before."""
    start = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        if sync:
            os.fsync(file.fileno())
    except OSError as error:
        file.truncate(start)
        file.seek(start)
        raise RecordingError(
            f"{file.name} cannot be written: {error}; what it holds is kept, "
            f"{WAY_OUT}={Path(file.name).parent}"
        ) from error
