"""Fetch the files of a source into a folder: what there is, whether it fits, and what is still missing.

`source.json` holds the listing that the files belong to. A source that has changed since is refused: files of
two versions would be mixed.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from eval.published.sources import PARTIAL, RemoteFile, Source, Unavailable, file_digest
from eval.records.schema import to_json
from eval.render.console import print_info
from policies.files import write_atomic
from policies.text import pluralize, shorten

REPORT_S = 10.0  # between two lines of progress


class Refused(ValueError):
    """The command cannot go on; the message is one readable line."""


@dataclass(frozen=True)
class Listing:
    """The files of a source that are wanted, and the folder on this machine that they belong in."""

    url: str
    folder: Path
    files: tuple[RemoteFile, ...]

    @property
    def missing(self) -> list[RemoteFile]:
        """Those that are not there with their size."""
        return [file for file in self.files if _size(self.folder / file.path) != file.size]

    @property
    def missing_bytes(self) -> int:
        """Bytes still to fetch; what arrived of a file that was cut off is there."""
        return sum(file.size - (_size(self.folder / f"{file.path}{PARTIAL}") or 0) for file in self.missing)

    @property
    def paths(self) -> list[Path]:
        """Where the files lie, or will."""
        return [self.folder / file.path for file in self.files]

    def has(self, patterns: Sequence[str]) -> bool:
        return any(_matches(file.path, patterns) for file in self.files)


def list_wanted(
    source: Source, place: Path, record: Path, files: Sequence[str], needed: Sequence[str]
) -> Listing:
    """List what is wanted of a source, and record it; nothing is fetched.

    Without an answer the recorded listing will do if all of its files are there.

    Args:
        place: folder for the files; the source's own where it is a folder on this machine.
        record: file with the listing of an earlier time, if there was one.
        files, needed: patterns of what is wanted, and of what must be there.

    Raises:
        Unavailable: the source does not answer, and files are missing.
        Refused: a needed file is not in it, or it is not what was recorded.
    """
    before = _read(record, place)
    if before is not None and before.url != source.url:
        raise Refused(
            f"{record.parent} was filled from {before.url}, not from {source.url}; give another --folder"
        )
    try:
        listed = source.list_files()
    except Unavailable as error:
        if before is None or before.missing:
            raise
        print_info(f"{error}; all {pluralize(len(before.files), 'file')} of {source.url} are here already")
        return before
    listing = Listing(source.url, place, tuple(file for file in listed if _matches(file.path, files)))
    if strange := [file.path for file in listing.files if ".." in file.path.split("/")]:
        raise Refused(f"{source.url} lists files outside of itself: {shorten(strange)}")
    if absent := [pattern for pattern in needed if not listing.has([pattern])]:
        held = shorten(file.path for file in listed) or "nothing"
        raise Refused(f"{source.url} lacks {shorten(absent)}; it holds {held}")
    if before is not None and (changed := _changed(before, listing)):
        raise Refused(
            f"{source.url} has changed since {record.parent} was filled from it ({shorten(changed)}); "
            "give another --folder"
        )
    record.parent.mkdir(parents=True, exist_ok=True)
    content = {"url": listing.url, "files": [asdict(file) for file in listing.files]}
    write_atomic(record, to_json(content, "source", indent=1))
    return listing


def refuse_too_large(listings: Sequence[Listing], folder: Path, more_bytes: int) -> None:
    """Say how much there is to fetch; Refused where the disk has no room for it and `more_bytes`."""
    missing = [file for listing in listings for file in listing.missing]
    num_bytes = sum(listing.missing_bytes for listing in listings)
    free = shutil.disk_usage(folder).free
    more = f", {write_bytes(more_bytes)} more to convert them" if more_bytes else ""
    need = f"{pluralize(len(missing), 'file')}, {write_bytes(num_bytes)} to fetch into {folder}{more}"
    if num_bytes + more_bytes > free:
        raise Refused(f"{need}, but {write_bytes(free)} are free; give --folder on a larger disk")
    print_info(f"{need} ({write_bytes(free)} free)")


def fetch(source: Source, listing: Listing) -> None:
    """Fetch the missing files; Unavailable where one breaks off, Refused where one arrives damaged."""
    progress = _Progress(listing.missing_bytes)
    for file in listing.missing:
        source.download(file, listing.folder, progress.advance)
        path = listing.folder / file.path
        problem = None
        if _size(path) != file.size:
            problem = f"{_size(path)} bytes instead of {file.size}"
        elif file.digest is not None:
            digest = file_digest(path, file.digest.partition(":")[0])
            problem = f"{digest} instead of {file.digest}" if digest != file.digest else None
        if problem:
            path.unlink(missing_ok=True)
            raise Refused(f"{listing.url}: {file.path} arrived damaged, with {problem}; run this again")


def write_bytes(number: int) -> str:
    """`13.4 GB`, `4.3 MB`, `7.8 kB`: decimal, as disks and servers count."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"


class _Progress:
    """A line now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._start_s = self._said_s = time.monotonic()

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        now_s = time.monotonic()
        if now_s - self._said_s < REPORT_S:
            return
        self._said_s = now_s
        rate = write_bytes(round(self._done / (now_s - self._start_s)))
        print_info(f"fetched {write_bytes(self._done)} of {write_bytes(self._total)}, {rate}/s")


def _read(record: Path, place: Path) -> Listing | None:
    """Read the listing that the folders beside it came from; None where there are none yet."""
    if not record.is_file() or not any(path.is_dir() for path in record.parent.iterdir()):
        return None
    try:
        content = json.loads(record.read_bytes())
        files = tuple(RemoteFile(**file) for file in content["files"])
        return Listing(content["url"], place, files)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(f"{record} is damaged ({error!r}); give another --folder") from error


def _changed(before: Listing, now: Listing) -> list[str]:
    """The paths that one of two listings lacks, or that differ."""
    old, new = ({file.path: file for file in listing.files} for listing in (before, now))
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
