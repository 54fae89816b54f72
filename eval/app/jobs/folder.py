"""A folder in which jobs run belongs to one command at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder until this one leaves it or its process ends, even by a kill.

    The folder is made where it is missing, and removed again where nothing was put into it.

    Raises ValueError where another process is in it, OSError where there can be no such folder.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is in use by another process, which runs its jobs; wait until it has ended"
            ) from None
        yield
        is_new = False
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        os.close(descriptor)
