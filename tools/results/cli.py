"""Results: `python -m tools.results [--check]` writes what readers see of `docs/results/data`.

That is a table in README.md and all tables in docs/results/README.md, each between two markers; a plot for
each bench and a figure for runs under clocks, comparisons beside their runs, and a page for each report whose
runs have inferences. With `--check` nothing is written, and the exit status is 1 when one of them is not what
the data give. It is 1 either way when there is one that no data give: none is ever deleted.
"""

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from eval.render.console import print_error, print_info
from eval.render.tables import to_markdown
from policies.files import ROOT, write_atomic
from policies.text import shorten
from tools.results.bench import latency, read_benches
from tools.results.clocks import clock_figures
from tools.results.code import Commits
from tools.results.headline import NAME as HEADLINE
from tools.results.headline import headline
from tools.results.plot import latency_svg
from tools.results.runs import DATA, REPORTS, comparisons, pages, read_runs
from tools.results.success import success

BEGIN = "<!-- results: begin, written by make results -->"
END = "<!-- results: end -->"
GENERATED = (f"{REPORTS}/*.svg", f"{REPORTS}/*.html", f"{DATA}/*/compare_*.md")


def files(root: Path) -> dict[Path, str]:
    """Write the text of each file from the data; none is touched.

    Raises:
        OSError, ValueError: the data are not as they must be, or a README has no place for them.
    """
    commits = Commits(root)
    runs, benches = read_runs(root), read_benches(root, commits)
    parts = {
        root / "README.md": headline(runs[HEADLINE]),
        root / REPORTS / "README.md": [
            *success(root, runs, commits),
            *chain.from_iterable(map(latency, benches)),
        ],
    }
    given = {path: _replace_part(path, to_markdown(blocks)) for path, blocks in parts.items()}
    given |= {root / REPORTS / bench.plot: latency_svg(bench) for bench in benches}
    given |= clock_figures(root)
    for name, report_runs in runs.items():
        given |= comparisons(report_runs) | pages(root, name, report_runs)
    return given


def _replace_part(path: Path, text: str) -> str:
    """Replace what stands between the markers in a file's text; the file stays as it is."""
    before = path.read_text(encoding="utf-8")
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in head + tail:
        raise ValueError(f"{path} must have the lines {BEGIN} and {END} once, in this order; put them back")
    return f"{head}{BEGIN}\n\n{text}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the files, or check them; return 1 with a line on stderr for what is stale, and for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.results", description="Write the results from the committed data."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is stale")
    check = parser.parse_args(arguments).check
    try:
        given = files(root)
        stale = [path for path, text in given.items() if not _holds(path, text)]
        for path in () if check else stale:
            write_atomic(path, given[path].encode())
    except (OSError, ValueError) as error:
        print_error(error)
        return 1
    for path in stale:
        name = path.relative_to(root)
        if check:
            print_error(f"{name} is not what the data give; run make results")
        else:
            print_info(f"wrote {name}")
    strange = [path for pattern in GENERATED for path in sorted(root.glob(pattern)) if path not in given]
    for path in strange:
        print_error(f"{path.relative_to(root)} is of no data; remove it")
    if kept := [path.relative_to(root) for path in given if path not in stale]:
        print_info(f"up to date: {shorten(kept)}")
    return 1 if strange or (check and stale) else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
