"""Run summary: `python -m eval.summary RUN [--json]` prints what the records of a run say."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.analysis.summary import summarise
from eval.app.ending import print_summary
from eval.config.errors import one_line
from eval.records.folders import find_folders, is_run
from eval.records.reader import read_run
from eval.records.schema import to_plain
from eval.render.console import print_error
from policies.files import path_argument
from policies.text import pluralize, shell_command, shorten


def _runs_below(folder: Path) -> str | None:
    """Say that a folder which is no run holds some, as a sweep's does, and how to see them; else None."""
    try:
        runs = find_folders(folder, is_run)
    except OSError:
        return None
    names = shorten(path.relative_to(folder) for path in runs)
    return (
        f"{folder} is no run, but holds {pluralize(len(runs), 'run')}; see all of them with "
        f"`{shell_command('eval.report', shlex.quote(str(folder)))}`, one with "
        f"`{shell_command('eval.summary', shlex.quote(str(runs[0])))}`; in it: {names}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a run's summary; return 1 with one line on stderr when it has no records or they are damaged."""
    parser = argparse.ArgumentParser(prog="python -m eval.summary", description="Summarise a run's records.")
    parser.add_argument(
        "run", type=path_argument, help="folder with episodes.jsonl, inferences.jsonl and run.json"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.run)
    except (OSError, ValueError) as error:
        below = None if is_run(options.run) else _runs_below(options.run)
        print_error(below or error)
        return 1
    try:
        summary = summarise(run)
    except ValueError as error:
        print_error(f"{options.run}: {one_line(error)}")
        return 1
    if options.json:
        sys.stdout.write(json.dumps(to_plain(summary.to_dict(), "summary"), indent=2, allow_nan=False) + "\n")
    else:
        print_summary(summary, options.run)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
