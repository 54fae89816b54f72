"""Upload offline runs: `python -m eval.wandb_sync RUN_OR_SWEEP... [--dry-run]` needs a W&B login.

A folder that holds runs stands for all of them, at whatever depth. What was uploaded before is left out and
counted. A run that cannot be uploaded stops no other; the exit status is then 1.

Non-obvious behaviors:
    W&B uploads what it finds below `files/`, links followed, to the project that the offline run names. A
    run that holds a link, or that a link leads to, is refused. Upload runs of your own alone.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from eval.records.folders import WANDB, find_folders, is_run
from eval.render.console import print_error, print_info
from eval.tracking.base import TrackingError
from eval.tracking.login import require_login
from policies.files import path_argument, refuse_links
from policies.text import pluralize

OFFLINE = f"{WANDB}/offline-run-*"
LOGS = "logs"  # of an offline run: W&B links it to the home folder, and does not upload it
UPLOADED = "*.wandb.synced"  # what `wandb sync` leaves behind

Upload = Callable[[Sequence[Path]], int]
"""Uploads the offline files of one run, in the order in which they began; returns the exit status."""


def find_offline(folders: Iterable[Path]) -> list[Path]:
    """List the offline runs of run folders, and of those that hold runs, saying how many; uploaded or not.

    Raises:
        OSError: a folder is not there, or holds no offline run.
    """
    offline: list[Path] = []
    for folder in folders:
        runs = find_folders(folder, lambda path: is_run(path) or any(path.glob(OFFLINE)))
        tracked = [run for run in runs if any(run.glob(OFFLINE))]
        if not tracked:
            raise FileNotFoundError(
                f"{folder} holds no offline W&B run ({OFFLINE}), but {pluralize(len(runs), 'run')} that "
                "tracked online or with tracking=none"
            )
        if runs != [folder]:
            print_info(f"{folder} has {pluralize(len(runs), 'run')}, {len(tracked)} of them tracked offline")
        offline += [path for run in tracked for path in sorted(run.glob(OFFLINE))]
    return list(dict.fromkeys(offline))


def by_run(offline: Iterable[Path]) -> list[list[Path]]:
    """Join the files of each run: one for each process that worked on it, with one id.

    W&B names the folder of an offline run after its time and its id.

    Raises:
        TrackingError: two runs have one id, so that one would replace the other.
    """
    with_id: dict[str, list[Path]] = {}
    for path in offline:
        name = path.name.rpartition("-")[2]
        paths = with_id.setdefault(name, [])
        if paths and paths[0].parent != path.parent:
            raise TrackingError(
                f"{paths[0]} and {path} have one W&B id, {name}: one would replace the other; name the "
                f"folders of all others, and upload one of these by `wandb sync --id NEW {path}`"
            )
        paths.append(path)
    return list(with_id.values())


def refuse_linked(offline: Iterable[Path]) -> None:
    """Raise NotPlain where W&B would upload what a link leads to, which no link of its own does."""
    for run in offline:
        refuse_links(run.parents[1], [WANDB], skip=[WANDB])
        refuse_links(run.parent, [run.name], skip=[run.name])
        refuse_links(run, [path.name for path in run.iterdir() if path.name != LOGS])


def upload(paths: Sequence[Path]) -> int:
    """Upload the offline files of one run with W&B's own command, which takes them in their order."""
    return subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, paths)], check=False).returncode


def main(arguments: Sequence[str] | None = None, upload: Upload = upload) -> int:
    """Upload what the command line names; return 1 when something could not be uploaded."""
    parser = argparse.ArgumentParser(prog="python -m eval.wandb_sync", description="Upload offline runs.")
    parser.add_argument(
        "runs",
        type=path_argument,
        nargs="+",
        metavar="RUN_OR_SWEEP",
        help="folder of a run, or one that holds runs",
    )
    parser.add_argument("--dry-run", action="store_true", help="name what would be uploaded; needs no login")
    options = parser.parse_args(arguments)
    try:
        offline = find_offline(options.runs)
        runs = by_run(offline)
        refuse_linked(offline)
        left = [[path for path in paths if not any(path.glob(UPLOADED))] for paths in runs]
        runs = [paths for paths in left if paths]
        if runs and not options.dry_run:
            require_login()
    except (OSError, TrackingError) as error:
        print_error(error)
        return 1
    failed: list[Path] = []
    for paths in runs:
        for path in paths:
            print_info(f"{'would upload' if options.dry_run else 'uploading'} {path}")
        if not options.dry_run and upload(paths) != 0:
            failed += paths
    done = "would upload" if options.dry_run else "uploaded"
    new = sum(map(len, runs))
    before = f"{len(offline) - new} of {pluralize(len(offline), 'offline run')} had been uploaded before"
    print_info(f"{done} {new - len(failed)}; {before}")
    for path in failed:
        print_error(f"{path} was not uploaded")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
