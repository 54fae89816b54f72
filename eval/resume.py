"""Going on with a run: what must not have changed, what a crash left unreadable, what is done.

Non-obvious behaviors:
    An episode that was running is run again, and its inferences from before are not counted; errors are tried
    again, and the last attempt counts. Each process has its own warm-up inferences.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eval.plan import Episodes, Plan
from eval.records import (
    EPISODES_FILE,
    INFERENCES_FILE,
    RUN_FILE,
    EpisodeRecord,
    InferenceRecord,
    RecordingError,
    RunWriter,
    require_records,
    to_plain,
)
from eval.run_reader import Run, read_run
from eval.sim_stack import PINS
from policies.base import EpisodeKey
from policies.listing import listing

# What may differ between the processes of a run: none of them enters an episode.
FREE = ("runner", "tracking", "video", "resume", "record_observations")
# What may differ between runs that are joined: which episodes they are.
WHICH_EPISODES = (
    "shard",
    "suite.tasks",
    *(f"protocol.{key}" for key in ("name", "num_tasks", "first_episode", "episodes")),
)
SIMULATOR = (*PINS, "gl")  # of `sim_stack.prepare`: what decides physics and pixels
DROPPED = ".dropped"  # what was unreadable in a file is kept beside it


class Changed(ValueError):
    """Records of before and after would not be of one run; the message says what differs."""


def recorded(folder: Path) -> dict[str, Any]:
    """Return run.json of a run that can be continued or joined with others.

    Raises:
        FileNotFoundError, ValueError: there is no such run, or nothing to compare with.
    """
    require_records(folder)
    path = folder / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the run ended before its first episode, and there is nothing to compare; "
            "start a new one"
        )
    run: dict[str, Any] = json.loads(path.read_bytes())
    if "episodes" not in run:
        raise ValueError(f"{path} does not say which episodes were planned; start a new run")
    return run


def refuse_joined(folder: Path, run: Mapping[str, Any]) -> None:
    """Raise ValueError for what `eval.merge` wrote: its parts are what can be continued."""
    if run.get("parts"):
        parts = listing(part["folder"] for part in run["parts"])
        raise ValueError(f"{folder} joins other runs ({parts}); go on with those, then join them again")


def nothing_left(folder: Path, run: Mapping[str, Any]) -> Run | None:
    """Return the records of a run that has finished all of its episodes; None for one to go on with.

    Args:
        run: its run.json.
    """
    if run.get("finished") is not True:
        return None
    try:
        records = read_run(folder)
    except ValueError:
        return None  # damaged since: `reopen` repairs it or says what is wrong
    planned = {key for part in run["episodes"] for key in Episodes.from_dict(part).keys()}  # noqa: SIM118  no mapping
    return records if planned <= _done(records) else None


def _done(run: Run) -> frozenset[EpisodeKey]:
    """Return the episodes that need no other attempt."""
    return frozenset(episode.key for episode in run.episodes if episode.success is not None)


def origin_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say how code and packages of two `provenance.collect()` differ."""
    old = _flat({"git": before["git"], "packages": before["packages"]})
    new = _flat({"git": now["git"], "packages": now["packages"]})
    keys = [key for key in old if key != "git.error"]
    return [f"{key} was {old[key]}, is {new.get(key)}" for key in keys if old[key] != new.get(key)]


def refuse_changed(
    what: Path | str, before: Mapping[str, Any], now: Mapping[str, Any], which: tuple[str, ...] = FREE
) -> None:
    """Raise Changed when two run.json differ in the configuration, the policy or the simulator.

    Args:
        what: has changed; for the message.
        now: may lack what is not known yet; that is not compared.
        which: keys of the configuration that may differ.
    """
    found = []
    for part in ("config", "policy", "simulator"):
        if part in now:
            old, new = _flat(before.get(part) or {}), _flat(to_plain(now[part], part))
            found += [
                f"{key if part == 'config' else f'{part} {key}'} was {old.get(key)!r}, is {new.get(key)!r}"
                for key in sorted(old.keys() | new.keys())
                if old.get(key) != new.get(key) and _counts(part, key, which)
            ]
    if found:
        raise Changed(f"{what} has another configuration, policy or simulator: {listing(found, '; ')}")


def _counts(part: str, key: str, free: tuple[str, ...]) -> bool:
    if part == "simulator":
        return key in SIMULATOR
    return part == "policy" or not any(key == name or key.startswith(f"{name}.") for name in free)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dots in its keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


@dataclass(frozen=True)
class Earlier:
    """A run that is continued: what its earlier processes recorded, and a writer that appends to it.

    Attributes:
        dropped: what was unreadable.
    """

    writer: RunWriter
    run: Run
    dropped: Sequence[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    @property
    def done(self) -> frozenset[EpisodeKey]:
        """The episodes that need no other attempt."""
        return _done(self.run)

    def rest_of(self, plan: Plan, policy: Mapping[str, Any], simulator: Mapping[str, Any]) -> Plan:
        """Return the plan without what has finished; errors are tried again.

        Raises:
            Changed: policy or simulator are not those of the run, or it holds episodes of another plan.
        """
        folder = self.writer.folder
        refuse_changed(folder, self.run.run, {"policy": policy, "simulator": simulator})
        foreign = plan.foreign(self.run.episodes)
        if foreign:
            raise Changed(f"{folder} holds {len(foreign)} episodes of another plan: {foreign[0]}")
        return replace(plan, done=self.done)

    def describe(self, now: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Return run.json of the run from now on: as it was, with `now` and a line on this process."""
        line = {
            "provenance": dict(provenance),
            "runner": now["runner"],
            "episodes_before": len(self.run.episodes),
            "dropped": list(self.dropped),
        }
        run = self.run.run
        notes = [*run.get("notes", []), *self.dropped]
        notes += [f"resumed: {change}" for change in origin_changes(run["provenance"], provenance)]
        return {**run, **now, "notes": notes, "resumed": [*run.get("resumed", []), line]}


def reopen(folder: Path) -> Earlier:
    """Return a run that is to be continued, its files repaired and open.

    Raises:
        RecordingError: another process writes to it.
        FileNotFoundError, ValueError: see `read_run`; a corrupt line that others follow.
    """
    writer = RunWriter(folder, resume=True)
    try:
        dropped = repair(folder)
        run = read_run(folder)
    except BaseException:
        writer.close()
        raise
    writer.continue_after(run.episodes)
    return Earlier(writer, run, dropped)


def repair(folder: Path) -> list[str]:
    """Cut what is unreadable off the ends of the records, and say what that was.

    That is a line cut short or damaged, and an episode whose inferences were lost with it. They are moved to
    a file beside the records, and their episodes are run again.
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
    """Return the last line, with its line feed where it has one; empty for an empty file."""
    data = path.read_bytes()
    return data[data.rfind(b"\n", 0, max(len(data) - 1, 0)) + 1 :]


def _cut(path: Path, line: bytes) -> None:
    """Move the last line to the file of what was dropped; a crash in between leaves it in both."""
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
