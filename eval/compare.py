"""Compare two runs: `python -m eval.compare BASE NEW [--margin 2.0] [--sequential] [--json]`.

Episodes are paired by suite, task, number and seed. The exit status is 0 when NEW is shown to lose less than
the margin, in percentage points of success, and every backend of both runs served all of its calls; 1 when
not; 2 when the runs cannot be compared, with one line on stderr that says why; 64 when the command line is
wrong.

Non-obvious behaviors:
    * All limits must lie above the margin: Newcombe's, for episodes drawn from these tasks; the one for tasks
      drawn again, which says nothing where no episode differs; and, where an episode raised, the one with
      that episode counted against NEW. Otherwise an episode that raised is in no pair.
    * These are for a number of pairs that was fixed beforehand. A run with stop=decided ended by its outcome:
      the sequential test judges it, and is read beside them with --sequential.
    * 100 of 100 twice shows nothing at 2 points: NEW might still lose 3.7.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from eval.analysis.comparable import NotComparable
from eval.analysis.comparison import MARGIN, compare
from eval.analysis.sources import margin_points
from eval.app.command import ArgumentParser
from eval.config.errors import one_line
from eval.records.reader import Run, read_run
from eval.records.schema import to_plain
from eval.render.comparison import markdown, render
from eval.render.console import print_error, report_console
from eval.render.junit import junit, junit_error
from policies.files import path_argument, write_atomic

NOT_COMPARABLE = 2  # exit status
STATUSES = (
    "exit status: 0 when NEW is non-inferior and all backends served every call, 1 when not, "
    f"{NOT_COMPARABLE} when the runs cannot be read or compared, {os.EX_USAGE} when the command line is wrong"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; return 0, 1 or 2 as the module says.

    Raises:
        SystemExit: with status 64, the command line is wrong.
    """
    parser = ArgumentParser(
        prog="python -m eval.compare", description="Compare two runs, episode by episode.", epilog=STATUSES
    )
    parser.add_argument("base", type=path_argument, metavar="BASE", help="folder of the run to compare with")
    parser.add_argument(
        "new", type=path_argument, metavar="NEW", help="folder of the run that may replace it"
    )
    parser.add_argument(
        "--margin",
        type=margin_points,
        default=MARGIN,
        help="percentage points that NEW may lose (%(default)s)",
    )
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="read the test that may be read at any time too, as of a run with stop=decided",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--markdown", type=path_argument, metavar="FILE", help="write a report too")
    parser.add_argument(
        "--junit", type=path_argument, metavar="FILE", help="write what the status is of as JUnit tests too"
    )
    options = parser.parse_args(arguments)
    try:
        runs = _read("BASE", options.base), _read("NEW", options.new)
        result = compare(*runs, options.margin, sequential=options.sequential)
        _write(options.markdown, markdown(result))
        _write(options.junit, junit(result))
    except (NotComparable, OSError) as error:
        print_error(error)
        with suppress(OSError):  # of a file that could not be written, which the line above says
            _write(options.junit, junit_error(one_line(error)))
        return NOT_COMPARABLE
    if options.json:
        sys.stdout.write(
            json.dumps(to_plain(result.to_dict(), "comparison"), indent=2, allow_nan=False) + "\n"
        )
    else:
        report_console().print(render(result))
    return 0 if result.passed else 1


def _write(file: Path | None, text: str) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)


def _read(name: str, folder: Path) -> Run:
    try:
        return read_run(folder)
    except ValueError as error:
        raise NotComparable(f"{name}: {error}") from error


if __name__ == "__main__":
    raise SystemExit(main())
