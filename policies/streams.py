"""Output streams whose reader may go away: a pipe that nobody reads any more, a terminal that was closed."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

GONE = (errno.EPIPE, errno.EIO)  # the latter from a terminal that was closed


class Surviving:
    """A text stream that goes quiet when its reader has gone; other errors, as of a full disk, stay errors.

    Non-obvious behaviors:
        The descriptor then leads to /dev/null: what other code, and the interpreter at its end, write to it
        fails no more.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._go_quiet(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._go_quiet(error)

    def _go_quiet(self, error: OSError) -> None:
        if error.errno not in GONE:
            raise error
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)


def surviving(stream: IO[str]) -> IO[str]:
    """The stream, or one around it that goes quiet when its reader has gone."""
    return stream if isinstance(stream, Surviving) else Surviving(stream)  # type: ignore[return-value]


@contextlib.contextmanager
def surviving_readers() -> Iterator[None]:
    """Let stdout and stderr go quiet inside the context when their reader has gone."""
    before = sys.stdout, sys.stderr
    out, err = surviving(sys.stdout), surviving(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        for stream in (out, err):
            stream.flush()
        if sys.stdout is out:
            sys.stdout = before[0]
        if sys.stderr is err:
            sys.stderr = before[1]
