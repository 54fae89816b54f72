"""Files: where the project lies, and writing a file in one step."""

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout, or of the folder of installed packages


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that appears under its name complete or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
