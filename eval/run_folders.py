"""What a command line says of runs: their folders, or those of sweeps, and the margin."""

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
        FileNotFoundError: a folder holds neither records nor a sweep.
        ValueError: records of a run are damaged (in a sweep, its job is a source without a run), or a sweep's
            list of jobs is.
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
        return [_of_job(folder / job["folder"], job.get("error")) for job in _jobs(folder / SWEEP_FILE)]
    raise FileNotFoundError(f"{folder} holds no run: no {EPISODES_FILE} and no {SWEEP_FILE} in it")


def _jobs(file: Path) -> list[dict[str, Any]]:
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("jobs"), list):
        raise ValueError(f"{file} has no list `jobs`; name the folders of its runs instead")
    return content["jobs"]


def _of_job(folder: Path, error: str | None) -> Source:
    if not (folder / EPISODES_FILE).is_file():
        return Source(folder, None, error or "not run yet")
    try:
        return Source(folder, read_run(folder), error)
    except (OSError, ValueError) as damage:
        return Source(folder, None, str(damage).removeprefix(str(folder)).lstrip("/ "))
