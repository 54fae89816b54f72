"""Sweep: `python -m eval.sweep +experiment=denoise_sweep` runs each job in a fresh process, one at a time.

    python -m eval.sweep policy=baseline,native_fp8 denoise.steps=10,3 protocol=full
    python -m eval.sweep --one-at-a-time +experiment=ablation
    python -m eval.sweep --resume outputs/sweeps/STAMP

Lists of values multiply. Jobs that this machine cannot run are refused before the first begins; with
`--only-runnable` they are named and left out. When a job fails, the others go on; the exit status is then 1.
At the end a table compares the runs with the first: it is printed, and written as `table.md` and `table.json`
into the sweep's folder. `python -m eval.report FOLDER` makes a page of it.

Non-obvious behaviors:
    * A fresh process for each job: in one process later jobs would find warm caches (`python -m eval -m`).
    * `--resume` starts the jobs that have not begun and goes on with those that have not finished.
"""

import argparse
import shlex
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from eval.analysis.comparison import MARGIN
from eval.analysis.overview import overview
from eval.analysis.sources import margin_points, read_sources
from eval.app.jobs.check import FindReasons, find_reasons, refusal
from eval.app.jobs.command import run_and_show, run_command
from eval.app.jobs.run import RunJob, has_finished, run_jobs, run_process
from eval.records.schema import to_json
from eval.records.sweep import SWEEP_FILE, JobRecord, read_job_records, write_job_records
from eval.render.console import print_info, report_console
from eval.render.overview import markdown, render
from eval.sweep.jobs import Job, experiments, read_jobs
from policies.files import write_atomic
from policies.text import pluralize

TABLE_FILES = ("table.md", "table.json")


class SweepError(ValueError):
    """The sweep cannot start; the message is one readable line."""


def new_sweep(folder: Path, jobs: Sequence[Job]) -> list[JobRecord]:
    """Record the jobs of a new sweep, none begun; SweepError where the folder holds a sweep."""
    if (folder / SWEEP_FILE).exists():
        raise SweepError(f"{folder} already holds a sweep; go on with it by --resume, or choose a new folder")
    return [JobRecord(job.folder, job.label, job.overrides) for job in jobs]


def read_sweep(folder: Path) -> list[JobRecord]:
    """Read the jobs of a sweep; SweepError where the folder holds none, ValueError where they are damaged."""
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise SweepError(f"{folder} holds no sweep: {SWEEP_FILE} is missing")
    return read_job_records(path)


def find_refused(
    folder: Path, records: Sequence[JobRecord], find_reasons: FindReasons, *, only_runnable: bool
) -> dict[str, str]:
    """Find the jobs that have not finished and cannot run here: folder to reason.

    Raises SweepError, after printing the details, where there are some and not `only_runnable`, or no others.
    """
    left = [record for record in records if not has_finished(folder, record)]
    jobs = [record.overrides for record in left]
    reasons = find_reasons(jobs)
    refused = {
        record.folder: reason.text for record, reason in zip(left, reasons, strict=True) if reason is not None
    }
    if refused and (not only_runnable or len(refused) == len(left)):
        details, line = refusal(jobs, reasons)
        print_info(details)
        raise SweepError(line)
    return refused


def write_tables(folder: Path, margin: float) -> None:
    """Print the runs side by side and write the tables; ValueError where no job recorded an episode."""
    table = overview(read_sources(folder), margin)
    write_atomic(folder / TABLE_FILES[0], markdown(table, f"Sweep {folder.name}"))
    write_atomic(folder / TABLE_FILES[1], to_json(table.to_dict(), "sweep", indent=1))
    report_console().print(render(table))
    print_info(f"tables: {', '.join(str(folder / name) for name in TABLE_FILES)}")
    print_info(f"a page of it: python -m eval.report {shlex.quote(str(folder))}")


def main(
    arguments: Sequence[str] | None = None,
    run_job: RunJob = run_process,
    find_reasons: FindReasons = find_reasons,
) -> int:
    """Exit with 0 when every job that was not left out finished, else 1; 130 when interrupted."""
    options = _read_options(arguments)
    work = partial(_sweep, options, run_job, find_reasons)
    return run_command(work, "interrupted while no job was running")


def _sweep(options: argparse.Namespace, run_job: RunJob, find_reasons: FindReasons) -> int:
    folder, records = _open(options)
    refused = find_refused(folder, records, find_reasons, only_runnable=options.only_runnable)
    write_job_records(folder, records)
    left_out = f", {len(refused)} left out" if refused else ""
    print_info(f"{pluralize(len(records), 'job')}, one at a time{left_out}; folder: {folder}")
    run_and_show(
        partial(run_jobs, folder, records, run_job, refused),
        partial(write_tables, folder, options.margin),
        f"go on with it: python -m eval.sweep --resume {shlex.quote(str(folder))}",
    )
    return 0 if all(record.status == 0 for record in records if record.folder not in refused) else 1


def _open(options: argparse.Namespace) -> tuple[Path, list[JobRecord]]:
    """The folder and jobs of the sweep that the options begin or resume."""
    if options.resume is not None:
        return options.resume, read_sweep(options.resume)
    jobs = read_jobs(options.overrides, one_at_a_time=options.one_at_a_time)
    now = datetime.now().astimezone()
    folder = options.out or Path("outputs", "sweeps", f"{now:%Y-%m-%d_%H-%M-%S}")
    return folder, new_sweep(folder, jobs)


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
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
    return options
