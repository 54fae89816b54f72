"""Upload offline runs: `python -m eval.wandb_sync RUN_OR_SWEEP... [--dry-run]` needs a W&B login.

What was uploaded before is left out. A run that cannot be uploaded stops no other; the exit status is then 1.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.text import Text

from eval.summary import report_console
from eval.tracking import TrackingError

OFFLINE = "wandb/offline-run-*"
UPLOADED = "*.wandb.synced"  # what `wandb sync` leaves behind

Upload = Callable[[Path], int]
"""Uploads one offline run, returns the exit status."""


def find_offline(folders: Iterable[Path]) -> list[Path]:
    """Return the offline runs of run folders and of the folders in them that have not been uploaded.

    Raises:
        FileNotFoundError: a folder has none, uploaded or not.
    """
    found = []
    for folder in folders:
        runs = sorted({*folder.glob(OFFLINE), *folder.glob(f"*/{OFFLINE}")})
        if not runs:
            raise FileNotFoundError(
                f"{folder} holds no offline W&B run ({OFFLINE}): it was tracked with tracking=none, or online"
            )
        found += [run for run in runs if not any(run.glob(UPLOADED))]
    return list(dict.fromkeys(found))


def require_login() -> None:
    """Look for a login without asking for one.

    Raises:
        TrackingError: there is none, or W&B refuses it.
    """
    import wandb  # not installed where nothing is tracked

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        logged_in = wandb.login(prompt=False, verify=True)
    except wandb.errors.Error as error:
        raise TrackingError(f"W&B refused the login: {error}") from error
    if not logged_in:
        raise TrackingError("uploading needs a W&B login: set WANDB_API_KEY or run `wandb login`")


def upload(run: Path) -> int:
    """Upload one offline run with W&B's own command."""
    return subprocess.run([sys.executable, "-m", "wandb", "sync", str(run)], check=False).returncode


def main(arguments: Sequence[str] | None = None, upload: Upload = upload) -> int:
    """Upload what the command line names; return 1 when something could not be uploaded."""
    parser = argparse.ArgumentParser(prog="python -m eval.wandb_sync", description="Upload offline runs.")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN_OR_SWEEP", help="folder of a run, or one that holds runs"
    )
    parser.add_argument("--dry-run", action="store_true", help="name what would be uploaded; needs no login")
    options = parser.parse_args(arguments)
    console = report_console(stderr=True)
    try:
        runs = find_offline(options.runs)
        if runs and not options.dry_run:
            require_login()
    except (OSError, TrackingError) as error:
        console.print(Text(f"error: {error}"), soft_wrap=True)
        return 1
    failed = []
    for run in runs:
        console.print(Text(f"{'would upload' if options.dry_run else 'uploading'} {run}"), soft_wrap=True)
        if not options.dry_run and upload(run) != 0:
            failed.append(run)
    console.print(Text(f"{len(runs)} offline runs" if runs else "everything was uploaded before"))
    for run in failed:
        console.print(Text(f"error: {run} was not uploaded"), soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
