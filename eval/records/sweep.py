"""`sweep.json`: the jobs of a sweep and how each ended."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.records.folders import WANDB
from eval.records.foreign import STRICT, DamagedRecords, check_json, read_value
from eval.records.overrides import refuse_lookups
from eval.records.schema import Seconds, to_json
from policies.files import refuse_links, write_atomic

SWEEP_FILE = "sweep.json"
WAY_OUT = "name the folders of its runs instead, or begin a new sweep"


@dataclass(frozen=True)
class JobRecord:
    """One job in `sweep.json`; ValueError where `folder` is not the name of a folder in the sweep's own."""

    __pydantic_config__ = STRICT

    folder: str
    label: str
    overrides: tuple[str, ...]
    status: int | None = None  # exit status of the last process; None before it has ended
    wall_s: Seconds | None = None
    error: str | None = None  # why there is no result; None while none is known

    def __post_init__(self) -> None:
        if (
            Path(self.folder).name != self.folder
            or self.folder in ("", "..")
            or not self.folder.isprintable()
        ):
            raise ValueError(
                f"folder must be the name of one in the sweep's folder, got {self.folder!r:.100}"
            )


def read_job_records(file: Path) -> list[JobRecord]:
    """Read the jobs in `sweep.json`; DamagedRecords names the damage.

    To run them, read them with `read_jobs_to_run`.
    """
    try:
        content = read_value(file)
        if not isinstance(content, dict) or not isinstance(content.get("jobs"), list):
            raise DamagedRecords(file, " has no list `jobs`")
        if not content["jobs"]:
            raise DamagedRecords(file, " has no job in `jobs`")
        records: list[JobRecord] = check_json(
            file, json.dumps({"jobs": content["jobs"]}).encode(), dict[str, list[JobRecord]]
        )["jobs"]
        names = [record.folder for record in records]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise DamagedRecords(
                    file, f" is damaged: jobs[{i}].folder: {name} is that of another job too"
                )
    except DamagedRecords as error:
        raise DamagedRecords(file, f"{error.problem}; {WAY_OUT}") from error
    return records


def read_jobs_to_run(file: Path) -> list[JobRecord]:
    """Read the jobs in `sweep.json` to run them: overrides are plain, and nothing is a link.

    Raises DamagedRecords, NotPlain. Which `_target_` they may name, `eval.config.compose.configure` says.
    """
    records = read_job_records(file)
    refuse_links(file.parent, [record.folder for record in records], skip=[WANDB])
    for i, record in enumerate(records):
        try:
            refuse_lookups(record.overrides)
        except ValueError as error:
            raise DamagedRecords(file, f": jobs[{i}]: {error}; {WAY_OUT}") from error
    return records


def write_job_records(folder: Path, records: Sequence[JobRecord]) -> None:
    """Replace `sweep.json` in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [asdict(record) for record in records]
    write_atomic(folder / SWEEP_FILE, to_json({"jobs": jobs}, "sweep", indent=1))
