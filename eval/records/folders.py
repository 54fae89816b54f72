"""The folder of a run: its files, and the search for such folders at any depth."""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from eval.records.foreign import PACKED, read_json
from eval.records.foreign import DamagedRecords as DamagedRecords
from eval.records.run_json import LEFT_OUT as LEFT_OUT
from eval.records.run_json import RUN_FILE as RUN_FILE
from policies.files import real_path
from policies.text import shorten

LOG_FILE = "job.log"  # of a job: what it printed
EPISODES_FILE = "episodes.jsonl"
INFERENCES_FILE = "inferences.jsonl"
PACKED_INFERENCES = INFERENCES_FILE + PACKED  # of a run that is kept; nothing is added to it
WANDB = "wandb"  # W&B's folder; it makes links in it, also out of it, and writes into new folders alone
MOST_DEEP = 50  # folders in one another, where runs are looked for; a sweep by date has five
BEFORE_RECORDS = (LOG_FILE, WANDB)  # what may be in a run's folder before the run is
CUT_SHORT = re.compile(rf"\.{re.escape(RUN_FILE)}\.[0-9a-f]{{8}}\.tmp")  # of a process killed as it wrote


class NoRecords(FileNotFoundError):
    """A folder holds no records; `reason` is the message without the folder."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder} {reason}")
        self.reason = reason


def is_run(folder: Path) -> bool:
    """Whether a run has begun to record there."""
    return (folder / EPISODES_FILE).is_file()


def refuse_used(folder: Path) -> None:
    """Raise FileExistsError for a folder that already holds records.

    What a process leaves that is killed before it has written run.json, empty files, are none.
    """
    names = (EPISODES_FILE, INFERENCES_FILE, PACKED_INFERENCES, RUN_FILE)
    held = [name for name in names if (folder / name).exists()]
    if held and not all(_is_unwritten(folder / name) for name in held):
        raise FileExistsError(f"{folder} already holds records ({', '.join(held)}); choose a new folder")


def refuse_full(folder: Path) -> None:
    """Raise FileExistsError for a folder that holds anything, but for what a job or W&B may leave there.

    Nor does it count what a process left that was killed before its first episode.
    """
    refuse_used(folder)
    others = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in others if path.is_symlink() or not _may_be_before(path)]
    if others:
        names = shorten(path.name for path in others)
        raise FileExistsError(f"{folder} is no new folder: it holds {names}; choose a new one")


def remove_cut_short(folder: Path) -> None:
    """Remove the parts of run.json that killed processes left; for the folder's only writer."""
    for path in folder.iterdir():
        if CUT_SHORT.fullmatch(path.name):
            path.unlink()


def _may_be_before(path: Path) -> bool:
    return path.name in BEFORE_RECORDS or _is_unwritten(path)


def _is_unwritten(path: Path) -> bool:
    """Whether a file is what a process leaves that is killed before run.json is written."""
    if CUT_SHORT.fullmatch(path.name):
        return True
    status = os.lstat(path)
    is_empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
    return path.name in (EPISODES_FILE, INFERENCES_FILE) and is_empty


def require_records(folder: Path) -> None:
    """Raise NoRecords for a folder without records; inferences may be packed, or left out with a reason."""
    if not (folder / EPISODES_FILE).is_file():
        raise NoRecords(folder, f"holds no records: {EPISODES_FILE} is missing")
    if inferences_file(folder) is None and not _left_out(folder):
        raise NoRecords(folder, f"holds no records: {INFERENCES_FILE} is missing")


def inferences_file(folder: Path) -> Path | None:
    """Find a run's inferences, packed or not; None where there are none, DamagedRecords where both are."""
    plain, packed = (folder / name for name in (INFERENCES_FILE, PACKED_INFERENCES))
    if packed.is_file():
        if plain.is_file():
            raise DamagedRecords(packed, f" lies beside {plain.name}; keep one of the two")
        return packed
    return plain if plain.is_file() else None


def refuse_kept(folder: Path) -> None:
    """Raise ValueError for a run whose inferences are packed or left out: no records can be added to it."""
    if (path := inferences_file(folder)) is None and (reason := _left_out(folder)):
        raise ValueError(f"{folder} has no inferences ({reason}): it can be neither continued nor joined")
    if path is not None and path.suffix == PACKED:
        raise ValueError(f"{path} is packed: to continue or join the run, unpack it with gunzip")


def _left_out(folder: Path) -> str | None:
    """Read from run.json why there are no inferences; None where it gives no reason."""
    with contextlib.suppress(OSError, ValueError):
        reason = read_json(folder / RUN_FILE).get(LEFT_OUT)
        return reason if isinstance(reason, str) and reason else None
    return None


def find_folders(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """Find what is `wanted`, such as runs: the folder itself, or folders below it, but none inside one found.

    Links are followed, and every folder is visited once. Siblings are sorted by the number that their names
    begin with, then by name.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or nothing wanted in it.
        OSError: folders lie more than `MOST_DEEP` deep in one another.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; name the folder of a run, or one that holds runs")
    wanted_folders = _find(folder, wanted, set(), 0)
    if not wanted_folders:
        raise FileNotFoundError(f"{folder} holds no run, nor does any folder below it")
    return wanted_folders


def _find(folder: Path, wanted: Callable[[Path], bool], seen: set[Path], depth: int) -> list[Path]:
    if depth > MOST_DEEP:
        raise OSError(f"{folder} lies more than {MOST_DEEP} folders deep; name one nearer to the runs")
    place = real_path(folder)
    if place in seen:
        return []
    seen.add(place)
    if wanted(folder):
        return [folder]
    below = sorted((path for path in folder.iterdir() if path.is_dir()), key=_number)
    return [run for path in below for run in _find(path, wanted, seen, depth + 1)]


def _number(folder: Path) -> tuple[float, str]:
    """Sort key that puts `10_...` behind `9_...`."""
    number = folder.name.partition("_")[0]
    return (int(number) if number.isdecimal() else float("inf"), folder.name)
