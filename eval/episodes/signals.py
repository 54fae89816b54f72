"""Signals that end a run: SIGINT, SIGTERM and SIGHUP, noticed whatever compiled code makes of them.

Non-obvious behaviors:
    * A handler that raises inside a callback of compiled code (numba, ctypes) may come out as another
      exception, or not at all. The handler therefore also remembers the signal, and `raise_pending`, which
      the rollout calls between control steps, raises it again.
    * The first signal alone raises. What then writes the summary is not disturbed by a copy of it: a terminal
      that closes sends SIGHUP twice, and a process group gets what its parent passes on once more.
    * A signal that the process was told to ignore at its start stays ignored: SIGHUP under nohup, SIGINT
      behind a shell's `&`.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import ClassVar

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COPIES_S = 0.5  # within which another signal is a copy of the first, and no second wish


class Signalled(KeyboardInterrupt):
    """A signal ends the run; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """The signal that came, when it came, how many blocks hold it back, and what a second one does."""

    pending: int | None = None
    since_s = 0.0
    held = 0
    deeds: ClassVar[list[Callable[[], object]]] = []


_state = _State()


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """Let the signals of `ENDING` raise Signalled, once, inside the context; a second one ends the process.

    Outside of the main thread, where Python allows no handlers, the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handlers_kept():
        _state.pending, _state.held = None, 0
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
                signal.signal(number, _notice)
        try:
            yield
        except KeyboardInterrupt as interrupt:
            raise_pending(interrupt)
        finally:
            _state.pending = None


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the handlers of `ENDING` at the end: a library that is started inside sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Raise a signal that comes inside the context at its end, so that what is written is whole."""
    before = _state.pending
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
    if before is None and not _state.held:
        raise_pending()


@contextlib.contextmanager
def at_once(deed: Callable[[], object]) -> Iterator[None]:
    """Do something before a second signal ends the process, such as ending another process."""
    _state.deeds.append(deed)
    try:
        yield
    finally:
        _state.deeds.remove(deed)


def raise_pending(error: BaseException | None = None) -> None:
    """Raise the signal that came, or the KeyboardInterrupt that `error` comes from; else do nothing.

    Args:
        error: what compiled code or a library made of the interrupt.
    """
    if _state.pending is not None:
        raise Signalled(_state.pending) from error
    if error is not None and (interrupt := _interrupt_behind(error)) is not None:
        raise interrupt


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """128 and the signal's number, as a shell says it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    if _state.pending is not None:  # a library, as Ray, raises another KeyboardInterrupt in its place
        return 128 + _state.pending
    return 128 + (interrupt.number if isinstance(interrupt, Signalled) else signal.SIGINT)


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt in an error's chain of causes and contexts."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        link = left.pop()
        if link is None or id(link) in seen:
            continue
        if isinstance(link, KeyboardInterrupt):
            return link
        seen.add(id(link))
        left += [link.__cause__, link.__context__]
    return None


def _notice(number: int, frame: FrameType | None) -> None:
    if _state.pending is None:
        _state.pending, _state.since_s = number, time.monotonic()
        if not _state.held:
            raise Signalled(number)
    elif number != signal.SIGHUP and time.monotonic() - _state.since_s > COPIES_S:
        for deed in _state.deeds:
            with contextlib.suppress(Exception):
                deed()
        with contextlib.suppress(OSError):
            os.write(2, b"ended at once by a second signal; what was recorded is kept\n")
        os._exit(128 + number)
