"""A resumed run: its records, repaired and open, and what is left of its plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eval.episodes.plan import Plan
from eval.records.reader import Run, read_run
from eval.records.repair import repair
from eval.records.resume import (
    Changed,
    finished_episodes,
    origin_changes,
    planned_episodes,
    refuse_changed,
)
from eval.records.run_json import RUN_FILE
from eval.records.writer import RunWriter
from policies.base import EpisodeKey


@dataclass(frozen=True)
class ResumedRun:
    """A run that is continued: what its earlier processes recorded, and a writer that appends to it."""

    writer: RunWriter
    run: Run
    dropped: Sequence[str]  # what was unreadable

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    @property
    def done(self) -> frozenset[EpisodeKey]:
        """Episodes that need no other attempt."""
        return finished_episodes(self.run)

    def rest_of(self, plan: Plan, policy: Mapping[str, Any], simulator: Mapping[str, Any]) -> Plan:
        """Take what has finished out of a plan; errors are tried again.

        Raises:
            Changed: policy or simulator are not those of the run, or it holds episodes of another plan.
        """
        folder = self.writer.folder
        refuse_changed(folder, self.run.run, {"policy": policy, "simulator": simulator})
        foreign = plan.foreign(self.run.episodes)
        if foreign:
            raise Changed(f"{folder} holds {len(foreign)} episodes of another plan: {foreign[0]}")
        if "episodes" in self.run.run and planned_episodes(self.run.run) != set(plan.episodes.keys()):
            raise Changed(
                f"episodes in {folder / RUN_FILE} are others than its config plans; start a new run"
            )
        return replace(plan, done=self.done)

    def describe(self, now: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
        """The run.json from now on: as it was, with `now` and a line on this process."""
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


def reopen(folder: Path) -> ResumedRun:
    """Repair the files of a run and open them to continue it.

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
    return ResumedRun(writer, run, dropped)
