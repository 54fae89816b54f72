"""Sweep: `python -m eval.sweep +experiment=denoise_sweep` runs each job in a fresh process, one at a time.

    python -m eval.sweep policy=baseline,native_fp8 denoise.steps=10,3 protocol=full
    python -m eval.sweep --one-at-a-time +experiment=ablation
    python -m eval.sweep --resume outputs/sweeps/STAMP

Lists of values multiply. Jobs that this machine cannot run are refused before the first begins; with
`--only-runnable` they are named and left out. A job that fails is noted and the others go on; the exit status
is then 1. At the end the runs are set side by side, the first one being what the others are compared with:
printed, and as `table.md` and `table.json` in the sweep's folder. `python -m eval.report FOLDER` makes a page
of it.

Non-obvious behaviors:
    * A fresh process for each job: in one process later jobs would find warm caches (`python -m eval -m`).
    * `--resume` starts the jobs that have not begun and goes on with those that have not finished.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from eval.analysis.comparison import MARGIN
from eval.analysis.overview import overview
from eval.analysis.sources import margin_points, read_sources
from eval.app import FULL_ERROR
from eval.records.folders import EPISODES_FILE, RUN_FILE
from eval.records.schema import to_plain
from eval.records.sweep import SWEEP_FILE, JobRecord, read_job_records
from eval.render.console import print_error, print_info, report_console
from eval.render.overview import markdown, render
from eval.sweep.check import Jobs, Reason, find_reasons, refusal
from eval.sweep.jobs import Job, experiments, override, read_jobs
from policies.files import IS_CHECKOUT, ROOT, write_atomic
from policies.text import pluralize

LOG_FILE = "job.log"  # beside the records: what the job printed
TABLE_FILES = ("table.md", "table.json")
PATIENCE_S = 60  # for a job that was interrupted to write its summary

RunJob = Callable[[list[str], Path], int]
"""Runs `python -m eval` with these arguments, writes what it prints to a file, returns the exit status."""

FindReasons = Callable[[Jobs], Sequence[Reason | None]]
"""Says of each job why this machine cannot run it, None where it can."""


class SweepError(ValueError):
    """The sweep cannot start; the message is one readable line."""


def new_sweep(folder: Path, jobs: Sequence[Job]) -> list[JobRecord]:
    """Return the jobs of a new sweep.

    Raises:
        SweepError: the folder holds a sweep.
    """
    if (folder / SWEEP_FILE).exists():
        raise SweepError(f"{folder} already holds a sweep; go on with it by --resume, or choose a new folder")
    return [JobRecord(job.folder, job.label, job.overrides) for job in jobs]


def read_sweep(folder: Path) -> list[JobRecord]:
    """Return the jobs of a sweep that has begun.

    Raises:
        SweepError: the folder holds none.
        ValueError: its list of jobs is damaged.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise SweepError(f"{folder} holds no sweep: {SWEEP_FILE} is missing")
    return read_job_records(path)


def write_jobs(folder: Path, records: Sequence[JobRecord]) -> None:
    """Replace `sweep.json` in one step."""
    _write(folder / SWEEP_FILE, _json({"jobs": [asdict(record) for record in records]}))


def find_refused(
    folder: Path, records: Sequence[JobRecord], find_reasons: FindReasons, *, only_runnable: bool
) -> dict[str, str]:
    """Return the jobs that have not finished and cannot run here: folder to reason.

    Raises:
        SweepError: there are some, and not `only_runnable`; or there are no others; why was said before.
    """
    left = [record for record in records if not _has_finished(folder, record)]
    jobs = [record.overrides for record in left]
    reasons = find_reasons(jobs)
    refused = {of.folder: reason.text for of, reason in zip(left, reasons, strict=True) if reason is not None}
    if refused and (not only_runnable or len(refused) == len(left)):
        details, line = refusal(jobs, reasons)
        print_info(details)
        raise SweepError(line)
    return refused


def run_jobs(folder: Path, records: list[JobRecord], run_job: RunJob, refused: Mapping[str, str]) -> None:
    """Run what has not finished, in order, and note in `records` and on the disk how each ended.

    Args:
        refused: jobs to be left out: folder to reason.
    """
    for i, record in enumerate(records):
        place = f"[{i + 1}/{len(records)}] {record.label}"
        if _has_finished(folder, record):
            records[i] = replace(record, status=0, error=None)
            print_info(f"{place}: finished before")
            continue
        if record.folder in refused:
            records[i] = replace(record, error=f"left out: {refused[record.folder]}")
            write_jobs(folder, records)
            print_info(f"{place}: {records[i].error}")
            continue
        log = folder / record.folder / LOG_FILE
        log.parent.mkdir(parents=True, exist_ok=True)
        print_info(f"{place}: running, what it prints is in {log}")
        said_before = log.stat().st_size if log.exists() else 0
        start_s = time.monotonic()
        status = run_job(_arguments(folder, record), log)
        wall_s = round(time.monotonic() - start_s, 1)
        error = None if status == 0 else _why(log, said_before, status)
        records[i] = replace(record, status=status, wall_s=wall_s, error=error)
        write_jobs(folder, records)
        print_info(f"{place}: {error or 'finished'}, {wall_s:.0f} s")


def is_finished(folder: Path) -> bool:
    """Return whether a run has run all of its episodes."""
    path = folder / RUN_FILE
    return path.is_file() and json.loads(path.read_bytes()).get("finished") is True


def write_tables(folder: Path, margin: float) -> None:
    """Print the runs side by side and write them into the sweep's folder.

    Raises:
        ValueError: no job recorded an episode.
    """
    shown = overview(read_sources(folder), margin)
    _write(folder / TABLE_FILES[0], markdown(shown, f"Sweep {folder.name}"))
    _write(folder / TABLE_FILES[1], _json(shown.to_dict()))
    report_console().print(render(shown))


def run_process(arguments: list[str], log: Path) -> int:
    """Run a job in a process of its own, in a session of its own: it is interrupted once, by this process.

    Raises:
        KeyboardInterrupt: once the job has written what it had.
    """
    with log.open("ab") as file:
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
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()  # no effect on one that has ended
            raise


def _environ() -> dict[str, str]:
    """Return the environment of a job, which finds a checkout that is not installed too."""
    paths = [str(ROOT)] if IS_CHECKOUT else []
    if before := os.environ.get("PYTHONPATH"):
        paths.append(before)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _has_finished(folder: Path, record: JobRecord) -> bool:
    return is_finished(folder / record.folder) and record.status in (None, 0)


def _arguments(folder: Path, record: JobRecord) -> list[str]:
    run = folder / record.folder
    if (run / EPISODES_FILE).is_file() and (run / RUN_FILE).is_file():
        return [override("resume", str(run))]
    named = any(text.startswith("tracking.group=") for text in record.overrides)
    group = [] if named else [override("tracking.group", folder.name)]
    return [*record.overrides, *group, override("hydra.run.dir", str(run))]


def _why(log: Path, said_before: int, status: int) -> str:
    """Return what a job said last of why it ended.

    Args:
        said_before: bytes of the log that are of earlier attempts.
    """
    text = log.read_bytes()[said_before:].decode(errors="replace")
    said = [line for line in text.splitlines() if line.startswith("error: ")]
    return f"exit status {status}" + (
        f": {said[-1].removeprefix('error: ')}" if said else f", see {log.name}"
    )


def _json(value: dict[str, Any]) -> str:
    return json.dumps(to_plain(value, "sweep"), indent=1, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def main(
    arguments: Sequence[str] | None = None,
    run_job: RunJob = run_process,
    find_reasons: FindReasons = find_reasons,
) -> int:
    """Run the command line; return 0 when every job that was not left out finished, 1 when not, 130 when
    interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.sweep", description="Run each job of a sweep in a fresh process, one at a time."
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m eval; lists of values multiply"
    )
    parser.add_argument("--one-at-a-time", action="store_true", help="vary one list at a time, then all")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: outputs/sweeps/<time>")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with this sweep")
    parser.add_argument(
        "--only-runnable", action="store_true", help="leave out, by name, the jobs that cannot run here"
    )
    parser.add_argument(
        "--margin",
        type=margin_points,
        default=MARGIN,
        help="percentage points of success that a job may lose against the first (%(default)s)",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.resume is not None and (options.overrides or options.out or options.one_at_a_time):
        parser.error("--resume takes the jobs of the sweep as they are; drop the other arguments")
    if options.resume is None and not options.overrides:
        parser.error(
            "nothing to sweep; give lists of values, as in policy=baseline,native_fp8 denoise.steps=10,3, "
            f"or an experiment that brings them: {', '.join(experiments())}"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems: end as after ctrl-C
    interrupted = False
    try:
        if options.resume is not None:
            folder, records = options.resume, read_sweep(options.resume)
        else:
            jobs = read_jobs(options.overrides, one_at_a_time=options.one_at_a_time)
            folder = options.out or Path(
                "outputs", "sweeps", f"{datetime.now().astimezone():%Y-%m-%d_%H-%M-%S}"
            )
            records = new_sweep(folder, jobs)
        refused = find_refused(folder, records, find_reasons, only_runnable=options.only_runnable)
        write_jobs(folder, records)
        left_out = f", {len(refused)} left out" if refused else ""
        print_info(f"{pluralize(len(records), 'job')}, one at a time{left_out}; folder: {folder}")
        try:
            run_jobs(folder, records, run_job, refused)
        except KeyboardInterrupt:
            interrupted = True
            print_info(
                f"interrupted; go on with it: python -m eval.sweep --resume {shlex.quote(str(folder))}"
            )
        write_tables(folder, options.margin)
        print_info(f"tables: {', '.join(str(folder / name) for name in TABLE_FILES)}")
        print_info(f"a page of it: python -m eval.report {shlex.quote(str(folder))}")
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get(FULL_ERROR) == "1":
            raise
        print_error(error)
        return 130 if interrupted else 1
    except KeyboardInterrupt:
        print_info("interrupted while no job was running")
        return 130
    if interrupted:
        return 130
    return 0 if all(record.status == 0 for record in records if record.folder not in refused) else 1
