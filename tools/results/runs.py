"""Committed runs side by side: each against its folder's base, and one page of all that have inferences.

The base is `runs/baseline_10`. Non-obvious behaviors:
    A comparison is of success: it leaves inferences out, also where they were kept. The page shows them.
"""

from pathlib import Path

from eval.analysis.comparison import MARGIN, compare
from eval.analysis.overview import Source, overview
from eval.records.folders import INFERENCES_FILE
from eval.records.reader import Run, read_run
from eval.render.comparison import markdown
from eval.report.page import page, report_command
from tools.results.data import REPORTS, data_folders, naming, report_of, run_folders
from tools.results.success import read_parts

BASE = "baseline_10"


def comparisons(root: Path) -> dict[Path, str]:
    """Return `compare_NAME.md` for each run NAME with as many denoise steps as the base beside it.

    Raises:
        ValueError: naming the run, where it cannot be read, or cannot be compared with the base.
    """
    found = {}
    for folder in data_folders(root):
        runs = {path.name: read_parts(path) for path in run_folders(folder)}
        base = runs.pop(BASE, None)
        if base is None:
            continue
        for name, run in runs.items():
            with naming(folder / "runs" / name):
                if _denoise_steps(run) == _denoise_steps(base):
                    found[folder / f"compare_{name}.md"] = markdown(compare(base, run, MARGIN))
    return found


def pages(root: Path) -> dict[Path, str]:
    """Return what `eval.report` makes of the runs that have inferences, base first, for each such folder.

    Raises:
        OSError, ValueError: a run cannot be read, or the folder has no report.
    """
    found = {}
    for folder in data_folders(root):
        runs = [path for path in run_folders(folder) if (path / INFERENCES_FILE).is_file()]
        if not runs:
            continue
        runs.sort(key=lambda path: path.name != BASE)
        report_of(root, folder)
        shown = overview([Source(path, read_run(path)) for path in runs], MARGIN)
        names = (path.relative_to(root).as_posix() for path in runs)
        command = report_command(names, folder.name)
        found[root / REPORTS / f"{folder.name}.html"] = page(shown, folder.name, command)
    return found


def _denoise_steps(run: Run) -> int | None:
    """Return None for a policy without a network."""
    return run.run["policy"].get("denoise_steps")
