"""`sweep.json`: the jobs of a sweep and how each ended."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.records.folders import DamagedRecords
from eval.records.schema import to_json
from policies.files import write_atomic

SWEEP_FILE = "sweep.json"
WAY_OUT = "name the folders of its runs instead, or begin a new sweep"


@dataclass(frozen=True)
class JobRecord:
    """One job in `sweep.json`."""

    folder: str
    label: str
    overrides: tuple[str, ...]
    status: int | None = None  # exit status of the last process; None before it has ended
    wall_s: float | None = None
    error: str | None = None  # why there is no result; None while none is known


def read_job_records(file: Path) -> list[JobRecord]:
    """Read the jobs in `sweep.json`; DamagedRecords names the damage."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config  # for sweeps alone

    strict: Any = with_config(ConfigDict(extra="forbid", strict=True))(JobRecord)
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict) or not isinstance(content.get("jobs"), list):
            raise DamagedRecords(file, f" has no list `jobs`; {WAY_OUT}")
        jobs: list[JobRecord] = TypeAdapter(list[strict]).validate_json(json.dumps(content["jobs"]))
        return jobs
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in first["loc"])
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise DamagedRecords(file, f" is damaged: jobs{place}: {first['msg']}{got}; {WAY_OUT}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedRecords(file, f" is not JSON ({error}); {WAY_OUT}") from error


def write_job_records(folder: Path, records: Sequence[JobRecord]) -> None:
    """Replace `sweep.json` in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [asdict(record) for record in records]
    write_atomic(folder / SWEEP_FILE, to_json({"jobs": jobs}, "sweep", indent=1))
