"""What a command line says of runs: their folders, or those of sweeps, and the margin."""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eval.overview import Source
from eval.records import EPISODES_FILE
from eval.run_reader import read_run

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class JobRecord:
    """A job as `sweep.json` has it.

    Attributes:
        status: exit status of its last process; None before it has ended.
        error: why there is no result, None while none is known.
    """

    folder: str
    label: str
    overrides: tuple[str, ...]
    status: int | None = None
    wall_s: float | None = None
    error: str | None = None


def margin_points(text: str) -> float:
    """Return a margin of success that was typed, in percentage points.

    Raises:
        argparse.ArgumentTypeError: it is not above 0 and below 100.
    """
    value = float(text)
    if not (math.isfinite(value) and 0 < value < 100):
        raise argparse.ArgumentTypeError(f"must be percentage points above 0 and below 100, got {text}")
    return value


def read_sources(folder: Path) -> list[Source]:
    """Return the run of a folder, or those of a sweep in the order of its jobs.

    Raises:
        FileNotFoundError: the folder holds neither records nor a sweep.
        ValueError: records of a run are damaged (in a sweep, its job is a source without a run), or a sweep's
            list of jobs is.
    """
    if (folder / EPISODES_FILE).is_file():
        return [Source(folder, read_run(folder))]
    if (folder / SWEEP_FILE).is_file():
        return [_of_job(folder / job.folder, job.error) for job in read_job_records(folder / SWEEP_FILE)]
    raise FileNotFoundError(f"{folder} holds no run: no {EPISODES_FILE} and no {SWEEP_FILE} in it")


def without_run(folder: Path, error: Exception) -> Source:
    """Return what stands for a run that cannot be read; the reason does not name the folder again."""
    return Source(folder, None, str(error).removeprefix(str(folder)).lstrip("/ "))


def read_job_records(file: Path) -> list[JobRecord]:
    """Return the jobs of a sweep's `sweep.json`.

    Raises:
        ValueError: the file is damaged; with what is wrong in it.
    """
    try:
        return [_record(f"jobs[{i}]", job) for i, job in enumerate(_jobs(file.read_bytes()))]
    except ValueError as error:
        raise ValueError(
            f"{file} {error}; name the folders of its runs instead, or begin a new sweep"
        ) from error


def _jobs(content: bytes) -> list[Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("jobs"), list):
        raise ValueError("has no list `jobs`")
    return found["jobs"]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_or_null(value: object) -> bool:
    return value is None or _is_text(value)


CHECKS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "folder": (_is_text, "text"),
    "label": (_is_text, "text"),
    "overrides": (_is_texts, "a list of texts"),
    "error": (_is_text_or_null, "text or null"),
}


def _record(place: str, job: object) -> JobRecord:
    if not isinstance(job, dict):
        raise ValueError(f"is damaged: {place} must be an object, got {job!r}")
    for key, (is_right, kind) in CHECKS.items():
        if not is_right(job.get(key)):
            got = repr(job[key]) if key in job else "nothing"
            raise ValueError(f"is damaged: {place}.{key} must be {kind}, got {got}")
    if unknown := job.keys() - {field.name for field in fields(JobRecord)}:
        raise ValueError(f"is damaged: {place} has unknown keys: {', '.join(sorted(unknown))}")
    return JobRecord(**{**job, "overrides": tuple(job["overrides"])})


def _of_job(folder: Path, error: str | None) -> Source:
    if not (folder / EPISODES_FILE).is_file():
        return Source(folder, None, error or "not run yet")
    try:
        return Source(folder, read_run(folder), error)
    except (OSError, ValueError) as damage:
        return without_run(folder, damage)
