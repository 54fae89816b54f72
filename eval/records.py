"""Run records: one JSON line per episode and per inference, on the disk before the next episode begins.

A run is a folder with `episodes.jsonl`, `inferences.jsonl` and `run.json`. They are the truth; summaries are
pure functions of them.
"""

import contextlib
import fcntl
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast, get_args

from policies.base import EpisodeKey

EPISODES_FILE = "episodes.jsonl"
INFERENCES_FILE = "inferences.jsonl"
RUN_FILE = "run.json"

Seeding = Literal["paired", "openpi"]
Outcome = Literal["success", "failure", "error"]


WAY_OUT = "free space and go on with resume"


class RecordingError(RuntimeError):
    """The disk refused a record: the run must stop, for nothing after it would be kept."""


@dataclass(frozen=True)
class EpisodeRecord:
    """What happened in one episode.

    Attributes:
        success: whether the task was done in time; None when the episode raised, which is not a failure.
        steps: control steps after settling.
        inferences: inferences that returned, warm-up ones included.
        wall_s: reset to last step, in seconds.
        checkpoint, checkpoint_sha256: what the policy loaded; None for a policy without weights.
        weights_label: what must be known of the weights before a number is believed: RANDOM WEIGHTS.
        actions_sha256: of all executed actions; initial_state_sha256: of the simulator's state before the
            first action. Either may be None only when the episode raised.
        error_type, error_message: of the exception; None when the episode finished.

    Raises:
        ValueError: when outcome, error and hashes contradict one another, or the seeding is unknown.
    """

    suite: str
    task_id: int
    instruction: str
    episode: int
    seed: int
    seeding: Seeding
    success: bool | None
    steps: int
    inferences: int
    wall_s: float
    policy: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    weights_label: str | None
    actions_sha256: str | None
    initial_state_sha256: str | None
    error_type: str | None = None
    error_message: str | None = None

    def __post_init__(self) -> None:
        if self.seeding not in get_args(Seeding):
            raise ValueError(f"seeding must be one of {get_args(Seeding)}, got {self.seeding!r}")
        if self.success is None and (self.error_type is None or self.error_message is None):
            raise ValueError(f"{self.key}: success is None, so error_type and error_message must be given")
        if self.success is not None:
            if self.error_type is not None or self.error_message is not None:
                raise ValueError(f"{self.key}: success is {self.success}, so there is no error to record")
            if self.actions_sha256 is None or self.initial_state_sha256 is None:
                raise ValueError(
                    f"{self.key}: a finished episode has actions_sha256 and initial_state_sha256"
                )

    @property
    def key(self) -> EpisodeKey:
        return EpisodeKey(self.suite, self.task_id, self.episode, self.seed)

    @property
    def outcome(self) -> Outcome:
        if self.success is None:
            return "error"
        return "success" if self.success else "failure"


@dataclass(frozen=True)
class InferenceRecord:
    """How long one inference took.

    Attributes:
        call: number of the inference in its episode, from 0.
        infer_ms: host observation to host action, synchronised at the end, in milliseconds.
        stage_ms: stage to milliseconds; empty where a policy has no stages.
        warmup: whether statistics leave it out.
        backends: stage to the backend that served this call.
        batch: how many requests were served together; their latency is the batch's.
        under_load: whether other episodes ran on the machine at the same time: not what a robot would feel.
    """

    suite: str
    task_id: int
    episode: int
    seed: int
    call: int
    infer_ms: float
    stage_ms: Mapping[str, float]
    warmup: bool
    backends: Mapping[str, str]
    batch: int = 1
    under_load: bool = False

    def __post_init__(self) -> None:
        for name, ms in {"infer": self.infer_ms, **self.stage_ms}.items():
            if not 0.0 < ms < math.inf:
                raise ValueError(
                    f"{self.key} call {self.call}: {name}_ms must be positive and finite, got {ms}"
                )

    @property
    def key(self) -> EpisodeKey:
        return EpisodeKey(self.suite, self.task_id, self.episode, self.seed)


class RunWriter:
    """Append the records of a run to a new folder, or with `resume` to one that holds some.

    Non-obvious behaviors:
        A folder has one writer at a time, also when processes of several machines share the file system.
        Inferences are written as they happen, and forced to the disk before their episode's line: an episode
        line always has its inferences, and those of an interrupted episode stay behind, which `read_run`
        reports.

    Raises:
        FileExistsError: when the folder already holds records; FileNotFoundError: with `resume`, when it
            holds none.
        RecordingError: when another process writes to the folder, and from every method that writes, when the
            disk refuses; files end with a whole line.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        if resume:
            require_records(folder)
        else:
            refuse_used(folder)
            folder.mkdir(parents=True, exist_ok=True)
        mode = "ab" if resume else "xb"
        self.folder = folder
        self._inferences = cast(FileIO, (folder / INFERENCES_FILE).open(mode, buffering=0))
        self._episodes = cast(FileIO, (folder / EPISODES_FILE).open(mode, buffering=0))
        self._lock()
        self._counts: Counter[EpisodeKey] = Counter()  # inferences of unfinished episodes
        self._finished: set[EpisodeKey] = set()
        _sync_folder(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_inference(self, record: InferenceRecord) -> None:
        """Append one inference.

        Raises:
            ValueError: when its call is not the next one of its episode, or a number is not finite.
            TypeError: when a value has no JSON form.
        """
        expected = self._counts[record.key]
        if record.call != expected:
            raise ValueError(f"{record.key}: inference call must be {expected}, got {record.call}")
        _append(self._inferences, _json_line(record))
        self._counts[record.key] += 1

    def add_episode(self, record: EpisodeRecord) -> None:
        """Append one episode; it and its inferences are on the disk when this returns.

        Raises:
            ValueError: when the episode has finished before, `record.inferences` is not the number added,
                or a number is not finite.
            TypeError: when a value has no JSON form.
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

        Raises:
            ValueError, TypeError: naming the field, when a value has no strict JSON form; the old file stays.
        """
        text = json.dumps(to_plain(run, RUN_FILE), indent=2, allow_nan=False) + "\n"
        temporary = self.folder / f".{RUN_FILE}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / RUN_FILE)
            _sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise RecordingError(
                f"{self.folder / RUN_FILE} cannot be written: {error}; {WAY_OUT}={self.folder}"
            ) from error

    def continue_after(self, records: Iterable[EpisodeRecord]) -> None:
        """Take note of what the folder holds: what has finished is not recorded again."""
        self._finished |= {record.key for record in records if record.success is not None}

    def _lock(self) -> None:
        """Keep other writers out until this one is closed or its process has ended, however that was."""
        try:
            fcntl.flock(self._episodes, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise RecordingError(
                f"{self.folder} is being written by another process; wait until it has ended"
            ) from error

    def close(self) -> None:
        """Close the files; calling it again does nothing."""
        self._inferences.close()
        self._episodes.close()


def refuse_used(folder: Path) -> None:
    """Raise FileExistsError for a folder that already holds records."""
    held = [name for name in (EPISODES_FILE, INFERENCES_FILE, RUN_FILE) if (folder / name).exists()]
    if held:
        raise FileExistsError(f"{folder} already holds records ({', '.join(held)}); choose a new folder")


def require_records(folder: Path) -> None:
    """Raise FileNotFoundError for a folder without records."""
    for name in (EPISODES_FILE, INFERENCES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no records: {name} is missing")


def to_plain(value: Any, where: str) -> Any:
    """Return `value` in JSON's own types (dict, list, str, int, float, bool, None).

    Raises:
        ValueError: naming the field below `where`, when a number is not finite.
        TypeError: likewise, when a value or a key has no JSON form; nothing is turned into text by guessing.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value}")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keys are text")
        return {key: to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no JSON form; convert it before recording"
    )


def _json_line(record: EpisodeRecord | InferenceRecord) -> bytes:
    return json.dumps(to_plain(vars(record), str(record.key)), allow_nan=False).encode() + b"\n"


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


def _sync_folder(folder: Path) -> None:
    """Make new and renamed files of a folder durable (fsync of a file does not cover its name)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
