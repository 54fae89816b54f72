"""The runs and sweeps that a report shows, found below the folders of a command line."""

import math
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from eval.analysis.overview import Source
from eval.analysis.sources import read_sources, without_run
from eval.records.folders import find_folders, is_run
from eval.records.run_json import RUN_FILE, read_run_json
from eval.records.sweep import SWEEP_FILE
from eval.render.console import print_info
from policies.files import real_path
from policies.text import pluralize, shorten


def find_sources(folders: Iterable[Path]) -> list[Source]:
    """Read the runs of all folders, each once, and say what lies in those that only hold runs.

    What is damaged is a source without a run, with the reason, unless it was named itself.

    Raises:
        OSError: a folder is not there, or holds no run.
        ValueError: the records of a run or a sweep that was named are damaged.
    """
    by_place: dict[Path, Source] = {}
    for folder in folders:
        inside = find_folders(folder, lambda path: is_run(path) or (path / SWEEP_FILE).is_file())
        if inside == [folder]:
            sources = read_sources(folder)
        else:
            inside = _in_order(inside)
            names = shorten(path.relative_to(folder) for path in inside)
            print_info(f"{folder} has {pluralize(len(inside), 'folder')} with runs: {names}")
            sources = [source for path in inside for source in _readable(path)]
        for source in sources:
            by_place.setdefault(real_path(source.folder), source)
    return list(by_place.values())


def _in_order(folders: list[Path]) -> list[Path]:
    """Keep the order of jobs, whose folders begin with a number; sort others by when they began.

    Names are no order: the first is what the others are compared with.
    """
    if all(re.match(r"\d+_", folder.name) for folder in folders):
        return folders
    return sorted(folders, key=_began)


def _began(folder: Path) -> tuple[float, Path]:
    """When a run, or the first of a sweep, began; what does not say so comes last."""
    first = folder if is_run(folder) else next(iter(sorted(folder.glob(f"*/{RUN_FILE}"))), folder).parent
    try:
        time = (read_run_json(first).get("provenance") or {}).get("time", "")
        return datetime.fromisoformat(time).timestamp(), folder
    except (OSError, ValueError):
        return math.inf, folder


def _readable(folder: Path) -> list[Source]:
    try:
        return read_sources(folder)
    except (OSError, ValueError) as error:
        source = without_run(folder, error)
        print_info(f"{folder}: no numbers: {source.reason}")
        return [source]
