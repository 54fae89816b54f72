"""Files: where the project lies, and writing one in one step."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the checkout, or the site-packages that the wheel lies in
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
OUTPUTS = ROOT / "outputs" if IS_CHECKOUT else Path("outputs")  # site-packages are nobody's notebook


def search_current_folder_last() -> None:
    """Import modules of the current folder only where nothing installed has their name.

    Python puts the current folder first, where a user's own `policies` or `eval.py` would shadow ours.
    """
    here = os.getcwd()
    others = [entry for entry in sys.path if entry not in ("", here, str(ROOT))]
    sys.path[:] = [*others, str(ROOT), *([] if Path(here) == ROOT else [here])]


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and move it to `path` in one step at the end.

    A reader sees the old content or the new, never a part. When the body raises, `path` stays as it was.

    Args:
        durable: the new content survives a loss of power that comes after this.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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
