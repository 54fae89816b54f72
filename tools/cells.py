"""Cells of a measurement: many processes share the GPUs, and each cell is a run of its own (`OUT/parts`).

A process keeps to cells of one kind while there are some, because its policy is built for their prompt.
"""

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from eval.api import LoadedPolicy, evaluate, load_policy
from eval.config.schema import ConfigError
from eval.sim.errors import SimulatorError


class Grouped(Protocol):
    """A cell that is best run by the process that has run others `of` its kind."""

    @property
    def of(self) -> Hashable: ...


class Cell(Grouped, Protocol):
    """Some tasks of a suite, each from the same initial states: one run."""

    @property
    def suite(self) -> str: ...

    @property
    def first(self) -> int: ...  # initial state

    @property
    def count(self) -> int: ...

    @property
    def folder(self) -> str: ...  # below OUT/parts

    @property
    def chosen(self) -> tuple[str, ...]: ...  # overrides that choose its tasks


Some = TypeVar("Some", bound=Grouped)


def take(cells: Sequence[Some], taken: Any, own: Hashable) -> Some | None:
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


def measure(
    out: Path,
    cells: Sequence[Cell],
    policy: str,
    protocol: str,
    overrides: Sequence[str],
    processes: int,
    end: float,
    write: Callable[[], str],
) -> None:
    """Run the cells in so many processes, and print what `write` makes of their runs.

    Args:
        end: of `time.time`, after which no cell begins.

    Raises:
        SystemExit: no cell has begun, or some raised.
    """
    gpus = visible_gpus()
    context = multiprocessing.get_context("spawn")
    taken = context.Array("b", len(cells))
    rest = (policy, protocol, overrides)
    workers = [
        context.Process(target=_work, args=(out, cells, taken, *rest, gpus[i % len(gpus)], end))
        for i in range(min(processes, len(cells)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    try:
        say(write())
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    if failed := [worker.exitcode for worker in workers if worker.exitcode]:
        sys.exit(f"error: {len(failed)} of {len(workers)} processes failed with {failed}")


def _work(
    out: Path,
    cells: Sequence[Cell],
    taken: Any,
    policy: str,
    protocol: str,
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
    own: Hashable = None
    lost = 0
    while time.time() < end and (cell := take(cells, taken, own)) is not None:
        folder = out / "parts" / cell.folder
        if folder.exists():
            continue
        try:
            if loaded is None or cell.of != own:
                loaded = load_policy(policy, *overrides, *cell.chosen, suite=cell.suite)
                own = cell.of
            states = (f"protocol.first_episode={cell.first}", f"protocol.episodes={cell.count}")
            run = evaluate(
                loaded,
                *cell.chosen,
                *states,
                suite=cell.suite,
                protocol=protocol,
                folder=folder,
                progress=False,
            )
        except (ConfigError, SimulatorError, ValueError, OSError, RuntimeError) as error:
            lost += 1
            say(f"{cell.folder}: ERROR {type(error).__name__}: {error}")
            continue
        won = sum(bool(episode.success) for episode in run.records.episodes)
        say(f"{cell.folder}: {won} of {len(run.records.episodes)}")
    if lost:
        sys.exit(f"error: {lost} cells raised; the output above says why")


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
