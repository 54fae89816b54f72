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
    * `--resume` starts the jobs that have not begun and goes on with those that have not finished. A record
      names no code: of a policy of your own, `KEY._target_=PATH` is typed again, and so is `--config-dir`.
    * One command at a time works in a sweep's folder.
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
from eval.app.jobs.folder import owned
from eval.app.jobs.run import RunJob, has_finished, refuse_foreign_runs, run_jobs, run_process
from eval.app.jobs.typed import NOTHING, Typed
from eval.config.multiply import is_below, key_of
from eval.config.schema import ConfigError
from eval.config.targets import TRACKING, recorded_tracking, typed_again
from eval.config.typed import keep_text
from eval.records.schema import to_json
from eval.records.sweep import SWEEP_FILE, JobRecord, read_jobs_to_run, write_job_records
from eval.render.console import print_info, report_console
from eval.render.overview import markdown, render
from eval.sweep.jobs import Job, experiments, read_jobs
from policies.files import path_argument, write_atomic
from policies.text import pluralize, shell_command, shorten

TABLE_FILES = ("table.md", "table.json")


class SweepError(ValueError):
    """The sweep cannot start; the message is one readable line."""


def new_records(folder: Path, jobs: Sequence[Job]) -> list[JobRecord]:
    """Record the jobs of a new sweep, none begun; SweepError where the folder holds anything."""
    if (folder / SWEEP_FILE).exists():
        raise SweepError(f"{folder} already holds a sweep; go on with it by --resume, or choose a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SweepError(f"--out {folder} must be a new or an empty folder; it would mix with what is there")
    return [JobRecord(job.folder, job.label, job.overrides) for job in jobs]


def read_sweep(folder: Path, typed: Typed) -> list[JobRecord]:
    """Read the jobs of a sweep to go on with; SweepError where the folder holds none.

    Raises ValueError where they are damaged, or say what a record may not, unless it is `typed`.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise SweepError(f"{folder} holds no sweep: {SWEEP_FILE} is missing")
    records = read_jobs_to_run(path)
    typed.refuse_useless(record.overrides for record in records)
    for record in records:
        try:
            typed.configure(record.overrides)
        except ConfigError as error:
            raise SweepError(f"job {record.label}: {error}") from error
    return records


def find_refused(
    folder: Path,
    records: Sequence[JobRecord],
    find_reasons: FindReasons,
    typed: Typed = NOTHING,
    *,
    only_runnable: bool,
) -> dict[str, str]:
    """Find the jobs that have not finished and cannot run here: folder to reason.

    Raises SweepError, after printing the details, where there are some and not `only_runnable`, or no others.
    """
    left = [record for record in records if not has_finished(folder, record)]
    jobs = [record.overrides for record in left]
    reasons = find_reasons(jobs, typed)
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
    print_info(f"a page of it: {shell_command('eval.report', shlex.quote(str(folder)))}")


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
    typed = Typed(None, options.config_dir)
    if options.resume is None:
        jobs = read_jobs(options.overrides, one_at_a_time=options.one_at_a_time, folders=typed.folders)
        folder, open_records = options.out or _default_folder(), partial(new_records, jobs=jobs)
    else:
        typed = Typed(tuple(keep_text(options.overrides)), options.config_dir)
        folder, open_records = options.resume, partial(read_sweep, typed=typed)
        open_records(folder)  # a folder without a sweep is not made one
    with owned(folder):
        records = open_records(folder)
        refuse_foreign_runs(folder, records, typed)
        refused = find_refused(folder, records, find_reasons, typed, only_runnable=options.only_runnable)
        write_job_records(folder, records)
        _say_what_is_left_out(records, typed)
        left_out = f", {len(refused)} left out" if refused else ""
        print_info(f"{pluralize(len(records), 'job')}, one at a time{left_out}; folder: {folder}")
        run_and_show(
            partial(run_jobs, folder, records, run_job, refused, typed),
            partial(write_tables, folder, options.margin),
            f"go on with it: {_resume_command(folder, records, typed)}",
        )
    return 0 if all(record.status == 0 for record in records if record.folder not in refused) else 1


def _say_what_is_left_out(records: Sequence[JobRecord], typed: Typed) -> None:
    """Say which tracking of a record is not repeated: where a mirror goes, a command line says."""
    if typed.overrides is None or any(is_below(key_of(text), [TRACKING]) for text in typed.overrides):
        return
    left_out = {text: None for record in records for text in recorded_tracking(record.overrides)}
    if left_out:
        print_info(f"tracking is what this command line says, without the sweep's {shorten(left_out)}")


def _default_folder() -> Path:
    return Path("outputs", "sweeps", f"{datetime.now().astimezone():%Y-%m-%d_%H-%M-%S-%f}")


def _resume_command(folder: Path, records: Sequence[JobRecord], typed: Typed) -> str:
    """Spell the command that goes on with a sweep, with what its record may not say."""
    again = typed.overrides or typed_again(text for record in records for text in record.overrides)
    words = ["--resume", str(folder), *typed.flags, *again]
    return shell_command("eval.sweep", *map(shlex.quote, words))


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.sweep", description="Run each job of a sweep in a fresh process, one at a time."
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m eval; lists of values multiply"
    )
    parser.add_argument("--one-at-a-time", action="store_true", help="vary one list at a time, then all")
    parser.add_argument("--out", type=path_argument, metavar="FOLDER", help="default: outputs/sweeps/<time>")
    parser.add_argument("--resume", type=path_argument, metavar="FOLDER", help="go on with this sweep")
    parser.add_argument(
        "--config-dir",
        type=path_argument,
        metavar="FOLDER",
        help="with YAML of your own, as for python -m eval",
    )
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
    if options.resume is not None and (options.out or options.one_at_a_time):
        parser.error("--resume takes the jobs of the sweep as they are; drop the other arguments")
    if options.resume is None and not options.overrides:
        parser.error(
            "nothing to sweep; give lists of values, as in policy=baseline,native_fp8 denoise.steps=10,3, "
            f"or an experiment that brings them: {', '.join(experiments())}"
        )
    return options
