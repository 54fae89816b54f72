"""Report: `python -m eval.report RUN_OR_SWEEP... [--out FILE]` writes one HTML file that needs no network.

The first run is what the others are compared with, or the one that `--base RUN` names. A folder that holds
runs, as a sweep's or `outputs` does, stands for all of them, at whatever depth: a sweep's in the order of its
jobs, others in the order in which they began.
"""

import argparse
from collections.abc import Sequence

from rich.text import Text

from eval.analysis.comparison import MARGIN
from eval.analysis.overview import Overview, overview
from eval.analysis.sources import base_first, margin_points
from eval.render.console import print_error, report_console
from eval.report.page import page, report_command
from eval.report.sources import find_sources
from policies.files import path_argument, write_atomic
from policies.text import visible

REPORT_FILE = "report.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; return 1 with one line on stderr when there is nothing to report on."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description="Write runs into one HTML file that needs no network."
    )
    parser.add_argument(
        "runs",
        type=path_argument,
        nargs="+",
        metavar="RUN_OR_SWEEP",
        help="folder of a run, or one that holds runs",
    )
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help=f"default: {REPORT_FILE} in the first folder"
    )
    parser.add_argument(
        "--base",
        type=path_argument,
        metavar="RUN",
        help="what the others are compared with; default: the first run",
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
    command = report_command(map(str, options.runs), options.title, options.margin, options.base)
    try:
        result = overview(base_first(find_sources(options.runs), options.base), options.margin)
        text = page(result, options.title or default_title(result), command)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
    except (OSError, ValueError) as error:
        print_error(error)
        return 1
    report_console().print(Text(visible(f"report: {out}")), soft_wrap=True)
    return 0


def default_title(result: Overview) -> str:
    """Name the policies and suites of the runs."""
    policies = dict.fromkeys(entry.summary.policy for entry in result.entries)
    suites = dict.fromkeys(suite for entry in result.entries for suite in entry.summary.suites)
    return f"{', '.join(policies)} on {', '.join(suites)}"
