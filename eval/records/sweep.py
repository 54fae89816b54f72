"""`sweep.json`: the jobs of a sweep, and what has become of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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


def _is_status(value: object) -> bool:
    return value is None or type(value) is int


def _is_seconds(value: object) -> bool:
    return value is None or type(value) in (int, float)


CHECKS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "folder": (_is_text, "text"),
    "label": (_is_text, "text"),
    "overrides": (_is_texts, "a list of texts"),
    "status": (_is_status, "a whole number or null"),
    "wall_s": (_is_seconds, "a number or null"),
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
