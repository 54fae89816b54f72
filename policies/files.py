"""Files: where the project lies, and writing a file or a folder in one step."""

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the checkout, or the site-packages that the wheel lies in
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
OUTPUTS = ROOT / "outputs" if IS_CHECKOUT else Path("outputs")  # site-packages are nobody's notebook


def search_current_folder_last() -> None:
    """Import modules of the current folder only where nothing installed has their name.

    Python puts the current folder first, where a user's own `policies` or `eval.py` would shadow ours.
    """
    here = os.getcwd()
    others = [entry for entry in sys.path if entry not in ("", here)]
    first = [str(ROOT)] if IS_CHECKOUT else []  # a wheel is found already
    last = [] if Path(here) == ROOT else [here]
    sys.path[:] = [*first, *others, *last]


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and move it to `path` in one step at the end.

    A reader sees the old content or the new, never a part. When the body raises, `path` stays as it was.

    Args:
        durable: the new content survives a loss of power that comes after this.
    """
    temporary = _beside(path)
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
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` to fill, and move it to `path` in one step at the end.

    When the body raises, nothing is left of it. Raises FileExistsError where `path` is a file or a folder
    with something in it, FileNotFoundError where the folder that it goes into is not there.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; name a new folder, or remove it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to put {path.name} into; create it")
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_atomic(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Write a file that appears under its name complete or not at all; see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; ValueError where it holds anything else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content
