"""Committed runs, `docs/results/data/NAME/runs/POLICY_STEPS`: their comparisons and the page of NAME."""

from collections.abc import Mapping
from pathlib import Path

from eval.analysis.comparison import MARGIN, compare
from eval.analysis.overview import Source, overview
from eval.records.reader import Run, read_run
from eval.render.comparison import markdown
from eval.report.page import page, report_command

REPORTS = Path("docs", "results")
DATA = REPORTS / "data"
BASE = "baseline_10"
BASE_FILE = "base"  # beside `runs/`: the name of the run that the others are compared with, where not `BASE`
Runs = Mapping[Path, Run]
"""Folder to run: those of one report by name, but its base first."""


def read_runs(root: Path) -> dict[str, Runs]:
    """Read the runs of each report, by its name.

    Raises:
        OSError, ValueError: a run cannot be read, or a report has no base.
    """
    runs: dict[str, Runs] = {}
    for report in sorted((root / DATA).glob("*/runs/")):
        name, folders = report.parent.name, sorted(report.glob("*/"))
        file = report.with_name(BASE_FILE)
        base = report / (file.read_text(encoding="utf-8").strip() if file.exists() else BASE)
        if base not in folders:
            raise ValueError(
                f"{report} has no run {base.name} to compare the others with; name one in {file}"
            )
        folders.remove(base)
        runs[name] = {folder: read_run(folder) for folder in (base, *folders)}
    return runs


def comparisons(runs: Runs) -> dict[Path, str]:
    """Compare, as `eval.compare` does, each run with the base if their denoise steps are the same.

    Raises:
        ValueError: naming the run that cannot be compared.
    """
    base, *_ = runs.values()
    _, *others = runs.items()
    given = {}
    for folder, run in others:
        if run.run["policy"].get("denoise_steps") == base.run["policy"]["denoise_steps"]:
            try:
                text = markdown(compare(base, run, MARGIN))
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from error
            given[folder.parents[1] / f"compare_{folder.name}.md"] = text
    return given


def pages(root: Path, name: str, runs: Runs) -> dict[Path, str]:
    """Build the page that `eval.report` makes of the runs that have inferences, where any has."""
    timed = [Source(folder, run) for folder, run in runs.items() if run.inferences]
    if not timed:
        return {}
    command = report_command((source.folder.relative_to(root).as_posix() for source in timed), name)
    return {root / REPORTS / f"{name}.html": page(overview(timed, MARGIN), name, command)}
