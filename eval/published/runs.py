"""The runs of a target: one of each suite, as jobs of a sweep whose folder is the command's."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.config.compose import configure
from eval.config.multiply import key_of, parse_overrides, quoted, refuse_hydra
from eval.config.schema import ConfigError
from eval.published.fetch import Refused
from eval.published.targets import Target
from eval.records.folders import is_run
from eval.records.sweep import SWEEP_FILE, JobRecord, read_job_records
from eval.render.console import print_info
from eval.specs.choose import checked_spec
from policies.text import shorten

CHOSEN_BY = {
    "suite": "--suites",
    "policy": "--policy",
    "checkpoint": "the name of the target",
    "checkpoint.path": "--source",
    "checkpoint.tokenizer": "--tokenizer",
    "resume": "the same command again",
    "shard": "--suites",
}
WORKER_BYTES = 2e9  # of an environment, rounded up (docs/many-episodes.md)
MOST_WORKERS = 16  # measured no further (docs/many-episodes.md)


def refuse_chosen(overrides: Sequence[str]) -> None:
    """Raise ConfigError for a KEY=VALUE that a flag chooses, HydraException for what is none."""
    for override in parse_overrides(overrides):
        refuse_hydra(override, "this command", "--folder")
        if instead := CHOSEN_BY.get(key_of(override)):
            raise ConfigError(f"{key_of(override)} is chosen by {instead}")
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} must be one value; give one command for each")


def choose_runner(overrides: Sequence[str]) -> list[str]:
    """Choose Ray where there are cores for several environments; nothing where the user chose."""
    if any(_is_runner(text) for text in overrides):
        return []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) - 1  # one serves the policy
    workers = min(cores, int(memory / WORKER_BYTES) - 1, MOST_WORKERS)
    if workers < 2:
        return ["runner=local"]
    if importlib.util.find_spec("ray") is None:
        print_info(f"runner=local: with Ray {workers} episodes would run at once (pip install '.[ray]')")
        return ["runner=local"]
    return ["runner=ray", f"runner.workers={workers}"]


def make_jobs(
    target: Target,
    suites: Sequence[str],
    policy: str,
    weights: Path,
    tokenizer: Path | None,
    overrides: Sequence[str],
) -> list[JobRecord]:
    """List one job a suite, checked; ConfigError or HydraException for a value that is not allowed."""
    keys = {key_of(text) for text in overrides}
    shared = [
        f"policy={policy}",
        f"checkpoint={target.checkpoint}",
        quoted("checkpoint.path", str(weights)),
        *([] if tokenizer is None else [quoted("checkpoint.tokenizer", str(tokenizer))]),
        *([] if "protocol" in keys else ["protocol=official"]),
        *(text for text in target.overrides if key_of(text) not in keys),
        *overrides,
    ]
    jobs = [JobRecord(suite, suite, (f"suite={suite}", *shared)) for suite in suites]
    for job in jobs:
        checked_spec(configure(job.overrides), job.overrides)
    return jobs


def join_earlier(folder: Path, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """Join jobs with those that the folder records; Refused where a run was begun with other settings."""
    if not (folder / SWEEP_FILE).is_file():
        return list(jobs)
    records = {record.folder: record for record in read_job_records(folder / SWEEP_FILE)}
    for job in jobs:
        before = records.get(job.folder)
        differ = set(_counted(before)) ^ set(_counted(job)) if before is not None else set()
        if differ and is_run(folder / job.folder):
            raise Refused(
                f"{folder / job.folder} was begun with other settings ({shorten(sorted(differ))}); "
                f"give another --folder, with --source {folder / 'source'} if these weights are meant"
            )
        records[job.folder] = job if before is None else replace(before, overrides=job.overrides)
    return list(records.values())


def _counted(job: JobRecord) -> list[str]:
    """The overrides that episodes depend on."""
    return [text for text in job.overrides if not _is_runner(text)]


def _is_runner(override: str) -> bool:
    return key_of(override).partition(".")[0] == "runner"
