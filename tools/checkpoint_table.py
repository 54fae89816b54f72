"""Measure a checkpoint on whole suites, task by task: `python -m tools.checkpoint_table OUT --policy NAME`.

Many processes share the GPUs. Each runs cells of one task and some of its initial states, and keeps to its
task while there are cells of it, because the policy is built for a task's prompt. Every cell is a run of its
own (`OUT/parts`); the finished ones are merged at the end into one run a suite (`OUT/<suite>`), with a table
of all beside it.

    python -m tools.checkpoint_table OUT --policy baseline --processes 60 checkpoint.path=FOLDER
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from eval.analysis.statistics import wilson
from eval.api import LoadedPolicy, evaluate, load_policy
from eval.config.schema import ConfigError
from eval.merge import merge
from eval.records.reader import read_run
from eval.records.schema import EpisodeRecord
from eval.sim.errors import SimulatorError
from eval.sim.tasks import load_tasks
from policies.files import write_atomic

SUITES = ("libero_spatial", "libero_object", "libero_goal")
STATES = 50  # official initial states of a task


class Grouped(Protocol):
    """A cell that is best run by the process that has run others `of` its kind."""

    @property
    def of(self) -> Hashable: ...


Taken = TypeVar("Taken", bound=Grouped)


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


def take(cells: Sequence[Taken], taken: Any, own: Hashable) -> Taken | None:
    """Take a cell of one's own task, else of the task with the most left; None when all are taken.

    Args:
        taken: a shared array, a flag for each cell.
    """
    with taken.get_lock():
        left = [i for i in range(len(cells)) if not taken[i]]
        if not left:
            return None
        count = Counter(cells[i].of for i in left)
        best = min(left, key=lambda i: (cells[i].of != own, -count[cells[i].of], i))
        taken[best] = 1
        return cells[best]


def work(
    out: Path,
    cells: Sequence[Cell],
    taken: Any,
    policy: str,
    overrides: Sequence[str],
    gpu: str | None,
    end: float,
) -> None:
    """Run cells until none is left; those that exist are kept.

    Args:
        gpu: for CUDA_VISIBLE_DEVICES: network and rendering.
        end: of `time.time`, after which no cell begins.

    Raises:
        SystemExit: cells that raised; the others were run.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(1)
    loaded: LoadedPolicy | None = None
    own: tuple[str, int] | None = None
    lost = 0
    while time.time() < end and (cell := take(cells, taken, own)) is not None:
        folder = out / "parts" / cell.folder
        if folder.exists():
            continue
        try:
            if loaded is None or cell.of != own:
                loaded = load_policy(policy, f"suite.tasks=[{cell.task}]", *overrides, suite=cell.suite)
                own = cell.of
            states = (f"protocol.first_episode={cell.first}", f"protocol.episodes={cell.count}")
            run = evaluate(
                loaded, *states, suite=cell.suite, protocol="official", folder=folder, progress=False
            )
        except (ConfigError, SimulatorError, ValueError, OSError, RuntimeError) as error:
            lost += 1
            say(f"{cell.folder}: ERROR {type(error).__name__}: {error}")
            continue
        won = sum(bool(episode.success) for episode in run.records.episodes)
        say(f"{cell.folder}: {won} of {len(run.records.episodes)}")
    if lost:
        sys.exit(f"error: {lost} cells raised; the output above says why")


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


def say(line: str) -> None:
    """Print a line at once, from any process."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def visible_gpus() -> list[str | None]:
    """What each process may set CUDA_VISIBLE_DEVICES to, in turn; [None] without GPUs."""
    if not torch.cuda.is_available():
        return [None]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(named.split(",")) if named else [str(i) for i in range(torch.cuda.device_count())]


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
    gpus = visible_gpus()
    context = multiprocessing.get_context("spawn")
    taken = context.Array("b", len(cells))
    rest = (options.policy, options.overrides)
    processes = [
        context.Process(target=work, args=(options.out, cells, taken, *rest, gpus[i % len(gpus)], end))
        for i in range(min(options.processes, len(cells)))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    try:
        say(merge_suites(options.out))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    if failed := [process.exitcode for process in processes if process.exitcode]:
        sys.exit(f"error: {len(failed)} of {len(processes)} processes failed with {failed}")


if __name__ == "__main__":
    main()
