"""Fetch the files of a source into a folder: what there is, whether it fits, and what is still missing.

A file gets its name when it has arrived whole: it is on the disk, with the size and the hash that the source
lists. `source.json` holds that listing, and the SHA-256 of each file that was checked so; the next command
trusts no other. A source that has changed since is refused: files of two versions would be mixed.

Non-obvious behaviors:
    * Some sources publish no hash: a folder, a plain server. Their files can be checked by size alone, which
      `list_wanted` says; a download that broke off begins anew there, since nobody could tell a damaged part.
    * A folder on this machine is used where it lies. A file there that was only touched is the same file.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from eval.published.sources import (
    BLOCK,
    SHA256,
    RemoteFile,
    Source,
    Unavailable,
    digests,
    file_digests,
)
from eval.records.schema import to_json
from eval.render.console import print_info
from policies.files import sync, write_atomic
from policies.text import pluralize, shorten

PARTIAL = ".partial"
REPORT_S = 10.0  # between two lines of progress


class Refused(ValueError):
    """The command cannot go on; the message is one readable line."""


@dataclass(frozen=True)
class Checked:
    """What a file was when it was compared with the source's listing."""

    sha256: str  # `sha256:<hex>`, ours
    mtime_ns: int  # of the file here


@dataclass(frozen=True)
class Listing:
    """The files of a source that are wanted, and the folder on this machine that they belong in.

    Attributes:
        record: file that this is written to.
        checked: path to what is known of a file that is here.

    Raises:
        Refused: a path leads out of the folder.
    """

    url: str
    folder: Path
    record: Path
    files: tuple[RemoteFile, ...]
    checked: dict[str, Checked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if strange := [file.path for file in self.files if not _is_inside(file.path)]:
            raise Refused(f"{self.url} lists files outside of itself: {shorten(strange)}; do not use it")

    @property
    def missing(self) -> list[RemoteFile]:
        """Those that are not there as they were checked."""
        return [file for file in self.files if not self._is_here(file)]

    @property
    def missing_bytes(self) -> int:
        """Bytes still to fetch; what arrived of a file that broke off is there."""
        return sum(file.size - self.part(file) for file in self.missing)

    @property
    def paths(self) -> list[Path]:
        """Where the files lie, or will."""
        return [self.folder / file.path for file in self.files]

    def has(self, patterns: Sequence[str]) -> bool:
        return any(_matches(file.path, patterns) for file in self.files)

    def partial(self, file: RemoteFile) -> Path:
        """Where a file is written to before it has its name."""
        return self.folder / f"{file.path}{PARTIAL}"

    def part(self, file: RemoteFile) -> int:
        """Bytes to go on after; 0 where a damaged part would not be noticed in the end."""
        size = _size(self.partial(file)) or 0
        return size if file.digest is not None and size <= file.size else 0

    def write(self) -> None:
        """Record the listing; it survives a loss of power."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "url": self.url,
            "files": [asdict(file) for file in self.files],
            "checked": {path: asdict(checked) for path, checked in self.checked.items()},
        }
        write_atomic(self.record, to_json(content, "source", indent=1), durable=True)

    def _is_here(self, file: RemoteFile) -> bool:
        path, checked = self.folder / file.path, self.checked.get(file.path)
        return checked is not None and _size(path) == file.size and _mtime_ns(path) == checked.mtime_ns


def list_wanted(
    source: Source,
    place: Path,
    record: Path,
    files: Sequence[str],
    needed: Sequence[str],
    *,
    in_place: bool = False,
) -> Listing:
    """List what is wanted of a source, check what is here of it, and record both; nothing is fetched.

    Without an answer the recorded listing will do if all of its files are there.

    Args:
        place: folder for the files.
        record: file with the listing of an earlier time, if there was one.
        files, needed: patterns of what is wanted, and of what must be there.
        in_place: `place` is the source itself.

    Raises:
        Unavailable: the source does not answer, and files are missing.
        Refused: a needed file is not in it, it is not what was recorded, or it lists files outside of itself.
    """
    before = _read(record, place)
    if before is not None and before.url != source.url:
        raise Refused(
            f"{record.parent} was filled from {before.url}, not from {source.url}; give another --folder"
        )
    try:
        listed = source.list_files()
    except Unavailable as error:
        if before is None:
            raise
        _check_again(before)
        if before.missing:
            raise
        print_info(f"{error}; all {pluralize(len(before.files), 'file')} of {source.url} are here already")
        return before
    listing = Listing(source.url, place, record, tuple(file for file in listed if _matches(file.path, files)))
    if absent := [pattern for pattern in needed if not listing.has([pattern])]:
        held = shorten(file.path for file in listed) or "nothing"
        raise Refused(f"{source.url} lacks {shorten(absent)}; it holds {held}")
    if before is not None:
        if changed := _changed(before, listing, source):
            raise Refused(
                f"{source.url} has changed since {record.parent} was filled from it ({shorten(changed)}); "
                "give another --folder"
            )
        listing.checked.update(before.checked)
    if not in_place:
        known = set(before.files) if before is not None else set()
        for file in listing.files:
            if file not in known:
                listing.partial(file).unlink(missing_ok=True)  # of another version, or of nobody knows what
    new = [file.path for file in listing.files if file.digest is None and file.path not in listing.checked]
    if new:
        print_info(
            f"{source.url} publishes no hash of {pluralize(len(new), 'file')} ({shorten(new)}): size alone "
            f"can be checked; {record} will have the SHA-256 of what is here"
        )
    _check_again(listing, in_place=in_place)
    listing.write()
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
    """Fetch the missing files.

    Raises:
        Unavailable: one breaks off; what arrived of it is kept.
        Refused: one arrives damaged, and is removed.
    """
    progress = _Progress(listing.missing_bytes)
    for file in listing.missing:
        _fetch_file(source, listing, file, progress)


def _fetch_file(source: Source, listing: Listing, file: RemoteFile, progress: "_Progress") -> None:
    partial, path = listing.partial(file), listing.folder / file.path
    partial.parent.mkdir(parents=True, exist_ok=True)
    start = listing.part(file)
    with partial.open("ab") as out:
        out.truncate(start)
        for block in _blocks(source, file, start):
            out.write(block)
            out.flush()
            sync(partial)
            progress.advance(len(block))
    checked, problem = _check(partial, file)
    if problem is not None:
        partial.unlink()
        raise Refused(f"{listing.url}: {file.path} arrived damaged, with {problem}; run this again")
    listing.checked[file.path] = checked
    listing.write()
    partial.replace(path)
    sync(path.parent)


def _blocks(source: Source, file: RemoteFile, start: int = 0) -> Iterator[bytes]:
    """Read a file from `start` on; Unavailable where the source gives less or more than it listed."""
    while start < file.size:
        wanted = min(BLOCK, file.size - start)
        block = source.read(file, start, start + wanted)
        if not 0 < len(block) <= wanted:
            raise Unavailable(
                f"{source.url}: {file.path} gave {len(block)} of {wanted} bytes at {start} of {file.size}"
            )
        yield block
        start += len(block)


def _check(path: Path, file: RemoteFile) -> tuple[Checked, str | None]:
    """Hash a file that is here, and compare it with the listed size and hash: what is wrong, or None."""
    algorithm = (file.digest or SHA256).partition(":")[0]
    mtime_ns = path.stat().st_mtime_ns
    hashes = file_digests(path, {SHA256, algorithm})
    checked = Checked(hashes[SHA256], mtime_ns)
    if _size(path) != file.size:
        return checked, f"{_size(path)} bytes instead of {file.size}"
    if file.digest is not None and hashes[algorithm] != file.digest:
        return checked, f"{hashes[algorithm]} instead of {file.digest}"
    return checked, None


def _check_again(listing: Listing, *, in_place: bool = False) -> None:
    """Hash files that lie under their name without a record, or were written to since it."""
    for file in listing.missing:
        path, before = listing.folder / file.path, listing.checked.pop(file.path, None)
        if _size(path) != file.size:
            if in_place:
                raise Refused(f"{path} has {_size(path)} bytes, listed are {file.size}; is it being written?")
            continue
        checked, problem = _check(path, file)
        known = checked.sha256 == before.sha256 if before is not None else file.digest is not None
        if in_place or (known and problem is None):
            listing.checked[file.path] = checked
        else:
            print_info(f"{path} is not known to be what {listing.url} holds: it is fetched again")


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
        checked = {path: Checked(**entry) for path, entry in content["checked"].items()}
        return Listing(content["url"], place, record, files, checked)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refused(f"{record} is damaged ({error!r}); give another --folder") from error


def _changed(before: Listing, now: Listing, source: Source) -> list[str]:
    """The paths that one of two listings lacks, or whose content differs."""
    old, new = ({file.path: file for file in listing.files} for listing in (before, now))
    return sorted(
        path
        for path in old.keys() | new.keys()
        if path not in old
        or path not in new
        or _differs(old[path], new[path], before.checked.get(path), source)
    )


def _differs(old: RemoteFile, new: RemoteFile, checked: Checked | None, source: Source) -> bool:
    """Whether a source's file is another one; it is read where only its time of writing tells."""
    if old.size != new.size:
        return True
    if old.digest is not None and new.digest is not None:
        return old.digest != new.digest
    if old.etag == new.etag or checked is None:
        return False
    return digests(_blocks(source, new), new.size, [SHA256])[SHA256] != checked.sha256


def _is_inside(path: str) -> bool:
    """Whether a listed path stays below the folder that it is joined to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _mtime_ns(path: Path) -> int:
    return path.stat().st_mtime_ns
