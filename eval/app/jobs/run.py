"""Run jobs, one after another, each `python -m eval` in a fresh process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from eval.app.jobs.typed import NOTHING, Typed
from eval.config.compose import configure
from eval.config.multiply import is_below, key_of
from eval.config.schema import RAY_ONLY, Config, TrackingConfig
from eval.config.targets import NO_TRACKING, TRACKING, choice_of_policy
from eval.episodes.signals import at_once
from eval.records.folders import EPISODES_FILE, LOG_FILE, WANDB
from eval.records.resume import FREE, flat, portable
from eval.records.run_json import RUN_FILE, read_run_json
from eval.records.sweep import JobRecord, write_job_records
from eval.render.console import print_info
from policies.files import IS_CHECKOUT, ROOT, plain_opener, refuse_links
from policies.text import quoted, shorten, visible

MOST_LOG = 2**20  # bytes of a log's end in which its last error is looked for
PATIENCE_S = 60  # for a job that was interrupted to write its summary

RunJob = Callable[[list[str], Path], int]
"""Runs `python -m eval` with these arguments, writes what it prints to a file, returns the exit status."""


def run_jobs(
    folder: Path,
    records: list[JobRecord],
    run_job: RunJob,
    refused: Mapping[str, str],
    typed: Typed = NOTHING,
) -> None:
    """Run unfinished jobs in order; update `records`, and `sweep.json`, after each.

    `refused` holds the reasons for jobs to leave out, by folder.
    """
    for i, record in enumerate(records):
        place = f"[{i + 1}/{len(records)}] {visible(record.label)}"
        if has_finished(folder, record):
            records[i] = replace(record, status=0, error=None)
            print_info(f"{place}: finished before")
            continue
        if record.folder in refused:
            records[i] = replace(record, error=f"left out: {refused[record.folder]}")
            write_job_records(folder, records)
            print_info(f"{place}: {records[i].error}")
            continue
        log = folder / record.folder / LOG_FILE
        log.parent.mkdir(parents=True, exist_ok=True)
        print_info(f"{place}: running, what it prints is in {log}")
        printed_before = log.stat().st_size if log.exists() else 0
        start_s = time.monotonic()
        status = run_job(_arguments(folder, record, typed), log)
        wall_s = round(time.monotonic() - start_s, 1)
        error = None if status == 0 else _why(log, printed_before, status)
        records[i] = replace(record, status=status, wall_s=wall_s, error=error)
        write_job_records(folder, records)
        print_info(f"{place}: {error or 'finished'}, {wall_s:.0f} s")


def refuse_foreign_runs(folder: Path, records: Iterable[JobRecord], typed: Typed = NOTHING) -> None:
    """Refuse what jobs did not record: a link out of the folder, or a run with other overrides or plan.

    Raises NotPlain, DamagedRecords, or ValueError with the run and what differs.
    """
    records = list(records)
    refuse_links(folder, [record.folder for record in records], skip=[WANDB])
    for record in records:
        run = folder / record.folder
        if (run / RUN_FILE).exists() and (differences := _differences(read_run_json(run), record, typed)):
            raise ValueError(
                f"{run} holds a run that is not the job {record.label!r}: {shorten(differences, '; ')}; "
                "move it away, or choose another folder"
            )


def _differences(run: Mapping[str, Any], record: JobRecord, typed: Typed) -> list[str]:
    """List how a run differs from a job in what its episodes depend on."""
    begun, wanted = (
        {text for text in overrides if not is_below(key_of(text), FREE)}
        for overrides in (run.get("overrides") or (), typed.whole(record.overrides))
    )
    if begun != wanted:
        return [
            *(f"it was begun with {text}" for text in sorted(begun - wanted)),
            *(f"it was begun without {text}" for text in sorted(wanted - begun)),
        ]
    recorded, config = flat(run.get("config") or {}), flat(asdict(typed.configure(record.overrides)))
    return [
        f"{key} was {recorded[key]!r}, is {config[key]!r}"
        for key in sorted(recorded.keys() & config.keys())
        if not is_below(key, FREE) and portable(recorded[key]) != portable(config[key])
    ]


def is_finished(folder: Path) -> bool:
    """Whether run.json says that all episodes have been run."""
    return (folder / RUN_FILE).exists() and read_run_json(folder).get("finished") is True


def run_process(arguments: list[str], log: Path) -> int:
    """Run a job in a fresh process, in a session of its own: it is interrupted once, by this process.

    Raises KeyboardInterrupt once the job has written what it had.
    """
    with open(log, "ab", opener=plain_opener) as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "eval", *arguments],  # -P: an `eval.py` in this folder is not ours
            env=_environ(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()  # not SIGINT, which a shell's background processes ignore, and their jobs too
            try:
                with at_once(process.kill):
                    process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                pass  # it is killed below; the interrupt is what to report
            finally:
                process.kill()  # no effect on one that has ended
            raise


def _environ() -> dict[str, str]:
    """A job's environment; it finds a checkout that is not installed too."""
    paths = [str(ROOT)] if IS_CHECKOUT else []
    if before := os.environ.get("PYTHONPATH"):
        paths.append(before)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def has_finished(folder: Path, record: JobRecord) -> bool:
    return is_finished(folder / record.folder) and record.status in (None, 0)


def _arguments(folder: Path, record: JobRecord, typed: Typed) -> list[str]:
    run = folder / record.folder
    overrides = typed.whole(record.overrides)
    if not any(key_of(text) == "tracking.group" for text in overrides):
        overrides.append(quoted("tracking.group", folder.name))
    if (run / EPISODES_FILE).is_file() and (run / RUN_FILE).is_file():
        named = [text for text in typed.of_job(record.overrides) if not is_below(key_of(text), [TRACKING])]
        changes = free_changes(run, configure(overrides, folders=typed.folders))
        policy = choice_of_policy(record.overrides, named)
        return [*typed.flags, quoted("resume", str(run)), *policy, *named, *changes]
    return [*typed.flags, *overrides, quoted("hydra.run.dir", str(run))]


def free_changes(run: Path, config: Config) -> list[str]:
    """List the overrides with which a resumed run does what `config` says, of the keys that may change then.

    Of tracking a resumed run repeats that there was none, and nothing else. Runner and tracker read no others
    than those listed: `refuse_ignored` would refuse them.
    """
    before = read_run_json(run)
    kept = [text for text in before.get("overrides") or () if text == NO_TRACKING]
    repeated = {**(before.get("config") or {}), TRACKING: asdict(configure(kept).tracking)}
    ignored = [f"runner.{key}" for key in RAY_ONLY] if config.runner.name != "ray" else []
    if config.tracking.name == "none":
        ignored += [f"tracking.{item.name}" for item in fields(TrackingConfig) if item.name != "name"]
    recorded, wanted = flat(repeated), flat(asdict(config))
    return [
        _override(key, value)
        for key, value in wanted.items()
        if key != "resume"
        and is_below(key, FREE)
        and key not in ignored
        and (key not in recorded or recorded[key] != value)
    ]


def _override(key: str, value: Any) -> str:
    """Write an override that sets a key to a value of a configuration."""
    if isinstance(value, str):
        return quoted(key, value)
    if isinstance(value, list):
        return f"{key}=[{','.join(_override('', item).removeprefix('=') for item in value)}]"
    return f"{key}={json.dumps(value)}"


def _why(log: Path, printed_before: int, status: int) -> str:
    """Word why a job ended, by the last error in its log after the bytes of earlier attempts."""
    with open(log, "rb", opener=plain_opener) as file:
        file.seek(max(printed_before, file.seek(0, os.SEEK_END) - MOST_LOG))
        text = file.read().decode(errors="replace")
    said = [line for line in text.splitlines() if line.startswith("error: ")]
    return f"exit status {status}" + (
        f": {said[-1].removeprefix('error: ')}" if said else f", see {log.name}"
    )
