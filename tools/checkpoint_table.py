"""Measure a checkpoint on whole suites, task by task: `python -m tools.checkpoint_table OUT --policy NAME`.

Many processes share the GPUs. Each runs cells of one task and some of its initial states, and keeps to its
task while there are cells of it, because the policy is built for a task's prompt. Every cell is a run of its
own (`OUT/parts`); the finished ones are merged at the end into one run a suite (`OUT/<suite>`), with a table
of all beside it.

    python -m tools.checkpoint_table OUT --policy baseline --processes 60 checkpoint.path=FOLDER
"""

import argparse
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.analysis.statistics import wilson
from eval.merge import merge
from eval.records.reader import read_run
from eval.records.schema import EpisodeRecord
from eval.sim.tasks import load_tasks
from policies.files import write_atomic
from tools.cells import measure

SUITES = ("libero_spatial", "libero_object", "libero_goal")
STATES = 50  # official initial states of a task


@dataclass(frozen=True)
class Cell:
    """Some initial states of one task: one run."""

    suite: str
    task: int
    first: int
    count: int

    @property
    def of(self) -> tuple[str, int]:
        return self.suite, self.task

    @property
    def chosen(self) -> tuple[str, ...]:
        return (f"suite.tasks=[{self.task}]",)

    @property
    def folder(self) -> str:
        return f"{self.suite}/task{self.task}_from{self.first}"


def plan_cells(num_tasks: dict[str, int], states: int, states_a_cell: int) -> list[Cell]:
    """All tasks' first states, then all tasks' next ones: what is cut short has seen every task."""
    return [
        Cell(suite, task, first, min(states_a_cell, states - first))
        for first in range(0, states, states_a_cell)
        for suite, count in num_tasks.items()
        for task in range(count)
    ]


def merge_suites(out: Path) -> str:
    """Merge the finished parts of each suite; return a table of all, and write it beside them.

    Raises FileNotFoundError where no cell has begun.
    """
    if not (out / "parts").is_dir():
        raise FileNotFoundError(f"no cell was begun below {out}; give --minutes more than loading takes")
    lines = [
        "| task | success / n | 95 % Wilson | steps, median (most) | failed states | errors |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for suite in sorted(path.name for path in (out / "parts").iterdir()):
        parts = [path for path in sorted((out / "parts" / suite).iterdir()) if (path / "run.json").exists()]
        whole = out / suite
        if not parts:
            continue
        if whole.exists():  # of an earlier call, which had fewer parts
            shutil.rmtree(whole)
        merge(parts, whole)
        episodes = read_run(whole).episodes
        for task in sorted({episode.task_id for episode in episodes}):
            rows = [episode for episode in episodes if episode.task_id == task]
            lines.append(_row(f"{suite} {task} {rows[0].instruction}", rows))
        lines.append(_row(f"**{suite}**", episodes))
    text = "\n".join(lines) + "\n"
    write_atomic(out / "table.md", text)
    return text


def _row(name: str, episodes: Iterable[EpisodeRecord]) -> str:
    rows = sorted(episodes, key=lambda e: (e.task_id, e.episode))
    finished = [e for e in rows if e.success is not None]
    won = [e.steps for e in finished if e.success]
    interval = wilson(len(won), len(finished)) if finished else None
    bounds = f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %" if interval else "-"
    steps = f"{np.median(won):.0f} ({max(won)})" if won else "-"
    lost = [str(e.episode) for e in finished if not e.success]
    few = ", ".join(lost[:12]) + (", ..." if len(lost) > 12 else "")
    return (
        f"| {name} | {len(won)} / {len(finished)} | {bounds} | {steps} | {few or '-'} | "
        f"{len(rows) - len(finished)} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="tools.checkpoint_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder of parts, merged runs and the table")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as checkpoint.path=FOLDER")
    parser.add_argument("--policy", default="baseline")
    parser.add_argument("--suites", nargs="+", default=list(SUITES))
    parser.add_argument("--states", type=int, default=STATES, help="of each task, from the first on")
    parser.add_argument("--states-a-cell", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop starting cells after this time")
    options = parser.parse_intermixed_args(argv)
    end = time.time() + 60 * options.minutes
    num_tasks = {suite: len(load_tasks(suite)) for suite in options.suites}
    cells = plan_cells(num_tasks, options.states, options.states_a_cell)
    measure(
        options.out,
        cells,
        options.policy,
        "official",
        options.overrides,
        options.processes,
        end,
        lambda: merge_suites(options.out),
    )


if __name__ == "__main__":
    main()
