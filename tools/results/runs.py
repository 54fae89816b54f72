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
Runs = Mapping[Path, Run]
"""Folder to run: those of one report by name, but `BASE` first."""


def read_runs(root: Path) -> dict[str, Runs]:
    """Read the runs of each report, by its name.

    Raises:
        OSError, ValueError: a run cannot be read.
    """
    runs: dict[str, dict[Path, Run]] = {}
    for folder in sorted((root / DATA).glob("*/runs/*/"), key=lambda path: (path.name != BASE, path)):
        runs.setdefault(folder.parents[1].name, {})[folder] = read_run(folder)
    return dict(sorted(runs.items()))


def comparisons(runs: Runs) -> dict[Path, str]:
    """Compare, as `eval.compare` does, each run with the base beside it if their denoise steps are the same.

    Raises:
        ValueError: naming the run that cannot be compared.
    """
    (first, base), *others = runs.items()
    given = {}
    for folder, run in others if first.name == BASE else ():
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
