"""The runs of a target: one of each suite, as jobs of a sweep whose folder is the command's."""

import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from eval.app.jobs.run import has_finished
from eval.app.jobs.typed import Typed
from eval.config.multiply import is_below, key_of, parse_overrides, refuse_hydra
from eval.config.schema import ConfigError
from eval.published.fetch import Refused
from eval.published.targets import SUITES, Target
from eval.records.folders import is_run
from eval.records.resume import FREE
from eval.records.sweep import SWEEP_FILE, JobRecord, read_jobs_to_run
from eval.render.console import print_info
from eval.specs.choose import checked_spec
from policies.text import quoted, shell_command, shorten

CHOSEN_BY = {
    "suite": "--suites",
    "policy": "--policy",
    "checkpoint": "the name of the target",
    "checkpoint.path": "--source",
    "checkpoint.tokenizer": "--tokenizer",
    "resume": "the same command again",
    "shard": "--suites",
}
# What decides how an episode is computed, and how many there are, but not which weights act on what.
MAY_CHANGE = (
    *("runner", "tracking", "video", "record_observations", "optim", "seed", "protocol"),
    *(f"policy.{key}" for key in ("device", "precision", "form", "prompt_multiple", "images")),
)
WORKER_BYTES = 2e9  # of an environment, rounded up (docs/many-episodes.md)
MOST_WORKERS = 16  # measured no further (docs/many-episodes.md)


def refuse_chosen(overrides: Sequence[str]) -> None:
    """Refuse a KEY=VALUE that a flag chooses, or that has many values.

    Raises ConfigError, or HydraException for what is none.
    """
    for override in parse_overrides(overrides):
        refuse_hydra(override, "this command", "--folder")
        if instead := CHOSEN_BY.get(key_of(override)):
            raise ConfigError(f"{key_of(override)} is chosen by {instead}")
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} must be one value; give one command for each")


def choose_runner(overrides: Sequence[str]) -> list[str]:
    """Choose Ray where there are cores for several environments; nothing where the user chose."""
    if any(_is_key(text, ["runner"]) for text in overrides):
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
    typed: Typed,
    weights: Path,
    tokenizer: Path | None,
    overrides: Sequence[str],
    filled: Sequence[str] = (),
) -> list[JobRecord]:
    """List one job a suite, checked.

    Args:
        overrides: the user's, and the runner's.
        filled: of `weights.fill_in`.

    Raises:
        ConfigError, HydraException: a key that the published evaluation fixes, or a wrong value.
        ValueError, OSError: from a lerobot folder at `weights`, which may be missing.
    """
    shared = [
        f"policy={policy}",
        f"checkpoint={target.checkpoint}",
        quoted("checkpoint.path", str(weights)),
        *([] if tokenizer is None else [quoted("checkpoint.tokenizer", str(tokenizer))]),
        *([] if "protocol" in map(key_of, overrides) else ["protocol=official"]),
        *target.overrides,
        *filled,
        *overrides,
    ]
    jobs = [JobRecord(suite, suite, (f"suite={suite}", *shared)) for suite in suites]
    for job in jobs:
        checked_spec(typed.configure(job.overrides), job.overrides)
    if fixed := [text for text in overrides if not _is_key(text, MAY_CHANGE)]:
        raise ConfigError(
            f"{shorten(fixed)} would evaluate something else than was published; this command takes "
            f"{', '.join(MAY_CHANGE)}; for all else: "
            f"{shell_command('eval', f'checkpoint={target.checkpoint}', '...')}"
        )
    return jobs


def refuse_foreign(target: Target, job: JobRecord) -> None:
    """Raise Refused for a recorded job that this command would not give, one of an older version perhaps."""
    fixed = (f"suite={job.folder}", f"checkpoint={target.checkpoint}", *target.overrides)
    own = ("policy=", "checkpoint.path=", "checkpoint.tokenizer=", *target.filled)
    strange = [
        text
        for text in job.overrides
        if not (text in (*fixed, *own) or text.startswith(_any_value(own)) or _is_key(text, MAY_CHANGE))
    ]
    lacking = [f"no {text}" for text in fixed if text not in job.overrides]
    if job.folder not in SUITES or strange or lacking:
        raise Refused(
            f"{SWEEP_FILE} records {job.folder} with {shorten([*strange, *lacking])}, which is not what was "
            "published; give another --folder"
        )


def join_earlier(target: Target, folder: Path, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """Join jobs with those that the folder records.

    Raises Refused where a run was begun with other settings, or a recorded job is none of this command.
    """
    if not (folder / SWEEP_FILE).is_file():
        return list(jobs)
    records = {record.folder: record for record in read_jobs_to_run(folder / SWEEP_FILE)}
    for record in records.values():
        refuse_foreign(target, record)
    for job in jobs:
        before = records.get(job.folder)
        differ = set(_counted(before)) ^ set(_counted(job)) if before is not None else set()
        if differ and is_run(folder / job.folder):
            raise Refused(
                f"{folder / job.folder} was begun with other settings ({shorten(sorted(differ))}); "
                f"give another --folder, with --source {folder / 'source'} if these weights are meant"
            )
        if before is None:
            records[job.folder] = job
        elif not has_finished(folder, before):  # a run keeps the runner that it had
            records[job.folder] = replace(before, overrides=job.overrides)
    return list(records.values())


def _counted(job: JobRecord) -> list[str]:
    """The overrides that episodes depend on."""
    return [text for text in job.overrides if not _is_key(text, FREE)]


def _any_value(overrides: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in overrides if text.endswith("="))


def _is_key(override: str, keys: Iterable[str]) -> bool:
    """Whether an override sets one of `keys` or below, and nothing elsewhere (`KEY@PACKAGE`)."""
    key = key_of(override)
    return "@" not in key and is_below(key, keys)
