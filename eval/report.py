"""Report: `python -m eval.report RUN_OR_SWEEP... [--out FILE]` writes one HTML file that needs no network.

The first run is what the others are compared with. A folder that holds runs, as a sweep's or `outputs` does,
stands for all of them, at whatever depth.
"""

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.text import Text

from eval.compare import MARGIN
from eval.overview import Overview, Source, overview
from eval.records import EPISODES_FILE
from eval.report_folders import find_folders
from eval.report_page import page
from eval.run_folders import margin_points, read_sources, without_run
from eval.summary import complain, report_console, say
from eval.sweep_file import SWEEP_FILE
from eval.words import counted
from policies.listing import listing

REPORT_FILE = "report.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; return 1 with one line on stderr when there is nothing to report on."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description="Write runs into one HTML file that needs no network."
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN_OR_SWEEP", help="folder of a run, or one that holds runs"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"default: {REPORT_FILE} in the first folder"
    )
    parser.add_argument("--title", help="default: what the runs are")
    parser.add_argument(
        "--margin",
        type=margin_points,
        default=MARGIN,
        help="percentage points of success that a run may lose against the first (%(default)s)",
    )
    options = parser.parse_args(arguments)
    out = options.out or options.runs[0] / REPORT_FILE
    command = report_command(map(str, options.runs), options.title, options.margin)
    try:
        shown = overview(find_sources(options.runs), options.margin)
        text = page(shown, options.title or default_title(shown), command)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        complain(error)
        return 1
    report_console().print(Text(f"report: {out}"), soft_wrap=True)
    return 0


def report_command(folders: Iterable[str], title: str | None = None, margin: float = MARGIN) -> str:
    """Return the command that makes a page again, with what is not a default of what the page says."""
    chosen = [f"--title={title}"] if title else []
    chosen += [f"--margin={margin}"] if margin != MARGIN else []
    return shlex.join(["python", "-m", "eval.report", *folders, *chosen])


def find_sources(folders: Iterable[Path]) -> list[Source]:
    """Return the runs of all folders, each once, and say what was found in those that only hold runs.

    What is damaged is a source without a run, with the reason, unless it was named itself.

    Raises:
        OSError: a folder is not there, or holds no run.
        ValueError: the records of a run or a sweep that was named are damaged.
    """
    found: dict[Path, Source] = {}
    for folder in folders:
        inside = find_folders(folder, _is_run_or_sweep)
        if inside == [folder]:
            sources = read_sources(folder)
        else:
            names = listing(path.relative_to(folder) for path in inside)
            say(f"{folder} has {counted(len(inside), 'folder')} with runs: {names}")
            sources = [source for path in inside for source in _readable(path)]
        for source in sources:
            found.setdefault(source.folder.resolve(), source)
    return list(found.values())


def _readable(folder: Path) -> list[Source]:
    try:
        return read_sources(folder)
    except (OSError, ValueError) as error:
        source = without_run(folder, error)
        say(f"{folder}: no numbers: {source.reason}")
        return [source]


def _is_run_or_sweep(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (EPISODES_FILE, SWEEP_FILE))


def default_title(shown: Overview) -> str:
    """Return the policies and suites of the runs."""
    policies = dict.fromkeys(entry.summary.policy for entry in shown.entries)
    suites = dict.fromkeys(suite for entry in shown.entries for suite in entry.summary.suites)
    return f"{', '.join(policies)} on {', '.join(suites)}"


if __name__ == "__main__":
    raise SystemExit(main())
