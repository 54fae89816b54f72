"""What a command line says of runs: their folders, or folders that hold them, and the margin."""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.overview import Source
from eval.records import EPISODES_FILE
from eval.run_reader import read_run

SWEEP_FILE = "sweep.json"


def margin_points(text: str) -> float:
    """Return a margin of success that was typed, in percentage points.

    Raises:
        argparse.ArgumentTypeError: it is not above 0 and below 100.
    """
    value = float(text)
    if not (math.isfinite(value) and 0 < value < 100):
        raise argparse.ArgumentTypeError(f"must be percentage points above 0 and below 100, got {text}")
    return value


def read_sources(folders: Iterable[Path]) -> list[Source]:
    """Return the runs of all folders, each once, in their order; a sweep's in the order of its jobs.

    Raises:
        FileNotFoundError: a folder holds neither records nor folders with records.
        ValueError: records are damaged.
    """
    found: dict[Path, Source] = {}
    for folder in folders:
        for source in _of_folder(folder):
            found.setdefault(source.folder.resolve(), source)
    return list(found.values())


def _of_folder(folder: Path) -> list[Source]:
    if (folder / EPISODES_FILE).is_file():
        return [Source(folder, read_run(folder))]
    if (folder / SWEEP_FILE).is_file():
        jobs: list[dict[str, Any]] = json.loads((folder / SWEEP_FILE).read_bytes())["jobs"]
        return [_of_job(folder / job["folder"], job.get("error")) for job in jobs]
    below = sorted((path.parent for path in folder.glob(f"*/{EPISODES_FILE}")), key=_job_number)
    if not below:
        raise FileNotFoundError(f"{folder} holds no run: no {EPISODES_FILE} in it or in the folders in it")
    return [Source(run, read_run(run)) for run in below]


def _of_job(folder: Path, error: str | None) -> Source:
    if (folder / EPISODES_FILE).is_file():
        return Source(folder, read_run(folder), error)
    return Source(folder, None, error or "not run yet")


def _job_number(folder: Path) -> tuple[float, str]:
    """Return what puts `10_...` behind `9_...`."""
    number = folder.name.partition("_")[0]
    return (int(number) if number.isdigit() else float("inf"), folder.name)
