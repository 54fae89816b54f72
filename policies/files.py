"""Files: where the project lies, and writing a file or a folder in one step."""

import argparse
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the checkout, or the site-packages that the wheel lies in
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
OUTPUTS = ROOT / "outputs" if IS_CHECKOUT else Path("outputs")  # site-packages are nobody's notebook
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
MAX_DEPTH = 100  # of a JSON file that is read; no program writes such files half as deep
MOST_JSON = 64 * 2**20  # bytes of one; the longest that we know, the index of a large network, has 0.2 MB


class NotPlain(OSError):
    """A path leads to a link, a pipe, a device or a second name of a file, where a plain file belongs."""


def search_current_folder_last() -> None:
    """Import modules of the current folder only where nothing installed has their name.

    Python puts the current folder first, where a user's own `policies` or `eval.py` would shadow ours.
    """
    here = os.getcwd()
    others = [entry for entry in sys.path if entry not in ("", here)]
    first = [str(ROOT)] if IS_CHECKOUT else []  # a wheel is found already
    last = [] if Path(here) == ROOT else [here]
    sys.path[:] = [*first, *others, *last]


def expand_home(path: str | Path) -> Path:
    """Replace `~` or `~user` at the start of a path.

    Raises FileNotFoundError for a user who is not there, ValueError for what can be no path.
    """
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} cannot be a path: it holds a NUL")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{str(path)!r} begins with the home of a user who is not on this machine; give the whole path"
        ) from error


def real_path(path: str | Path) -> Path:
    """Follow links, as `Path.resolve` does, which raises RuntimeError for a link to itself."""
    return Path(os.path.realpath(path))


def path_argument(text: str) -> Path:
    """Read a path of a command line, for argparse's `type`; no shell reads the `~` of `--out=~/x`."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got ''")
    try:
        return expand_home(text)
    except (FileNotFoundError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and move it to `path` in one step at the end.

    A reader sees the old content or the new, never a part. When the body raises, `path` stays as it was; a
    link to a file is replaced, not followed. Raises NotPlain where `path` is, or leads to, a device, a pipe
    or a folder, as /dev/null and /dev/stdout do: root would replace it for the whole machine.

    Args:
        durable: the new content survives a loss of power that comes after this.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise NotPlain(f"{path} must be the name of a file to write, got {kind}; name another one")
    temporary = _beside(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # nobody's link, nobody's file
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a folder beside `path` to fill, and move it to `path` in one step at the end.

    When the body raises, nothing is left of it; what a killed process left of the same `path` is removed
    here, unless a process that lives is filling it. Raises FileExistsError where `path` is a file or a folder
    with something in it, FileNotFoundError where the folder that it goes into is not there.

    Args:
        durable: all of it survives a loss of power that comes after this.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; name a new folder, or remove it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to put {path.name} into; create it")
    temporary = _beside(path)
    with contextlib.ExitStack() as held:
        _remove_left_behind(path)
        unlocked = temporary.with_suffix(".new")  # a name that nobody removes, until it is locked
        unlocked.mkdir()
        held.enter_context(hold_lock(unlocked))
        unlocked.replace(temporary)
        try:
            yield temporary
            if durable:
                for below in (*temporary.rglob("*"), temporary):
                    sync(below)
            temporary.replace(path)
            if durable:
                sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_atomic(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Write a file that appears under its name complete or not at all; see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def plain_opener(path: str, flags: int) -> int:
    """Open a plain file only: an `opener` for `open`, in a folder that somebody else may have filled.

    Raises NotPlain for a link, a pipe, a device or a folder, and, to write, for a file with a second name.
    """
    with contextlib.suppress(FileNotFoundError):  # `open` says so, or makes one
        _refuse_unlike_a_file(path, os.lstat(path), flags)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # a pipe would wait for a writer
    try:
        _refuse_unlike_a_file(path, os.fstat(descriptor), flags)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_plain(path: Path, most_bytes: int) -> bytes:
    """Read a plain file; NotPlain for anything else, ValueError for more than `most_bytes`."""
    with open(path, "rb", opener=plain_opener) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise ValueError(f"{path} must have at most {most_bytes} bytes, got {size}")
        return file.read(size)


def read_followed(path: Path, most_bytes: int) -> bytes:
    """Read a plain file that `path` is or leads to by links, as a cache of downloads has them.

    Raises NotPlain for anything else, ValueError for more than `most_bytes`.
    """
    place = real_path(path)
    try:
        return read_plain(place, most_bytes)
    except (NotPlain, ValueError) as error:
        raise type(error)(f"{path}{str(error).removeprefix(str(place))}") from error


def refuse_links(folder: Path, names: Iterable[str] | None = None, skip: Iterable[str] = ()) -> None:
    """Raise NotPlain where anything below a folder is neither a plain file nor a folder.

    Args:
        names: look at these in the folder, and at what is below them; None is everything.
        skip: look at folders of these names, at any depth, but not at what is below them.
    """
    for place, folders, files in os.walk(folder, followlinks=False):
        here = [*folders, *files]
        if Path(place) == folder:
            here = [name for name in here if names is None or name in names]
            folders[:] = [name for name in folders if name in here]
        folders[:] = [name for name in folders if name not in skip]
        for name in here:
            path = os.path.join(place, name)
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                _refuse_unlike_a_file(path, status, os.O_RDONLY)


def _refuse_unlike_a_file(path: str, status: os.stat_result, flags: int) -> None:
    """Raise NotPlain for what is no plain file, or, to write, is the file of another name too."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise NotPlain(f"{path} must be a plain file, got {kind}; remove it, or put a copy of the file there")
    if status.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
        raise NotPlain(
            f"{path} must have one name to be written to, got {status.st_nlink} hard links; "
            "put a copy of the file there"
        )


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def hold_lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process at the latest; yield whether it is held.

    It is not where another process holds it and `wait` is false, or the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        is_held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


def _remove_left_behind(path: Path) -> None:
    """Remove the folders that killed processes began to fill for `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    for left in path.parent.iterdir():
        if pattern.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
            with contextlib.suppress(OSError), hold_lock(left, wait=False) as is_held:  # another user's stays
                if is_held:
                    shutil.rmtree(left)


def read_json(path: Path) -> Any:
    """Read a JSON file of at most `MOST_JSON` bytes.

    Raises ValueError where it holds no JSON, more bytes, or lists and objects deeper than `MAX_DEPTH`,
    NotPlain where it is no plain file, links followed.
    """
    too_deep = f"{path} must not nest lists and objects deeper than {MAX_DEPTH}; it is damaged, copy it again"
    text = read_followed(path, MOST_JSON)
    try:
        content = json.loads(text)
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is not JSON: {error}") from error
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [item for outer in level for item in _items(outer)]
    if level:
        raise ValueError(too_deep)
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; ValueError where it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content


def _items(value: Any) -> Iterable[Any]:
    """What a list or an object holds; nothing for a single value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
