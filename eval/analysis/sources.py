"""What a command line says of runs: their folders, or those of sweeps, and the margin."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from eval.analysis.overview import Source
from eval.records.folders import EPISODES_FILE, DamagedRecords, NoRecords, is_run
from eval.records.reader import read_run
from eval.records.sweep import SWEEP_FILE, read_job_records
from policies.text import shorten


def margin_points(text: str) -> float:
    """Parse a margin of success, in percentage points.

    Raises:
        argparse.ArgumentTypeError: it is not above 0 and below 100.
    """
    value = float(text)
    if not (math.isfinite(value) and 0 < value < 100):
        raise argparse.ArgumentTypeError(f"must be percentage points above 0 and below 100, got {text}")
    return value


def read_sources(folder: Path) -> list[Source]:
    """Read the run of a folder, or those of a sweep in the order of its jobs.

    Raises:
        FileNotFoundError: the folder holds neither records nor a sweep.
        DamagedRecords: records of a run are (in a sweep, its job is a source without a run), or a sweep's
            list of jobs is.
    """
    if is_run(folder):
        return [Source(folder, read_run(folder))]
    if (folder / SWEEP_FILE).is_file():
        return [_of_job(folder / job.folder, job.error) for job in read_job_records(folder / SWEEP_FILE)]
    raise FileNotFoundError(f"{folder} holds no run: no {EPISODES_FILE} and no {SWEEP_FILE} in it")


def base_first(sources: Sequence[Source], base: Path | None) -> list[Source]:
    """Put the base before the others; without one the first of them stays it.

    Raises:
        ValueError: `base` is none of the runs, or has no numbers.
    """
    if base is None:
        return list(sources)
    place = base.resolve()
    chosen = [source for source in sources if source.folder.resolve() == place]
    if not chosen:
        raise ValueError(
            f"--base {base} is none of the runs; name one of {shorten(source.folder for source in sources)}"
        )
    if chosen[0].run is None or not chosen[0].run.episodes:
        raise ValueError(f"--base {base} has no numbers: {chosen[0].reason or 'no episode is recorded'}")
    return [*chosen, *(source for source in sources if source not in chosen)]


def without_run(folder: Path, error: Exception) -> Source:
    """What stands for a run that cannot be read; the reason does not name the folder again."""
    return Source(folder, None, error.reason if isinstance(error, NoRecords | DamagedRecords) else str(error))


def _of_job(folder: Path, error: str | None) -> Source:
    if not is_run(folder):
        return Source(folder, None, error or "not run yet")
    try:
        return Source(folder, read_run(folder), error)
    except (OSError, ValueError) as damage:
        return without_run(folder, damage)
