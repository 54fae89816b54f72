"""A websocket to a policy server: whole messages out and in, each within its time, every fault one line."""

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from policies.remote.wire import MEBIBYTE, WireError, unpack
from policies.text import visible

T = TypeVar("T")
log = logging.getLogger(__name__)
quiet = logging.getLogger(f"{__name__}.websockets")  # tells in tracebacks what an error here tells in a line
quiet.addHandler(logging.NullHandler())
quiet.propagate = False

RETRY_S = 0.2  # between attempts to connect
CLOSE_S = 1.0  # how long a server may take to say goodbye
BUSY = 503  # HTTP: not ready yet
UNAUTHORISED = (401, 403)
TOO_BIG = 1009  # websocket's status of a message above the limit
MAX_LINE = 300  # characters of a server's words
ENDS = (OSError, EOFError, UnicodeError, WebSocketException)  # why websockets ends a connection by itself


class RemoteError(ConnectionError):
    """The policy server is not there, is late, or says something else than actions; one line."""


class Redirected(InvalidHandshake):
    """A server that names another one; the message is the address that it gives."""


class _Straight(ClientConnection):
    """A connection to the server that was named: websockets 17 would go wherever that one sends it."""

    def handshake(self, *args: Any, **keywords: Any) -> None:
        try:
            super().handshake(*args, **keywords)
        except InvalidStatus as error:
            if 300 <= error.response.status_code < 400:
                places = error.response.headers.get_all("Location")
                raise Redirected(" and ".join(places) or "nowhere") from error
            raise


class Link:
    """One connection to a server.

    Args:
        timeout_s: how long a message may take to leave, and an answer to come.
        max_bytes: of one message of the server's.
    """

    def __init__(self, url: str, timeout_s: float, max_bytes: int, api_key: str | None = None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._socket: ClientConnection | None = None
        self._leave = contextlib.ExitStack()

    def open(self, wait_s: float) -> None:
        """Connect, trying again for `wait_s` seconds while nobody listens or the server is not ready.

        Raises:
            RemoteError: nobody answered in that time, or somebody who is no server of this kind.
        """
        self.close()
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self._socket = self._connect(max(deadline - time.monotonic(), RETRY_S))
                return
            except InvalidStatus as error:
                status = error.response.status_code
                if status in UNAUTHORISED:
                    raise self._error(
                        f"refuses the connection (HTTP {status}); "
                        "name the variable that holds its key with policy.api_key_env=NAME"
                    ) from error
                if status != BUSY:
                    raise self._error(
                        f"answers with HTTP {status}, it is no policy server; correct policy.url"
                    ) from error
                why: Exception = error
            except Redirected as error:
                raise self._error(
                    f"sends its clients on to {one_line(str(error))!r}; set policy.url to it, if you trust it"
                ) from error
            except (InvalidURI, InvalidProxy) as error:
                raise RemoteError(f"policy.url must be ws://HOST:PORT, got {self._url!r}") from error
            # the last two: of websockets 17.4 itself, where the other side hangs up in the handshake
            except (InvalidHandshake, ConnectionClosed, AssertionError) as error:
                raise self._error(
                    f"does not speak websocket ({one_line(str(error))}); correct policy.url"
                ) from error
            except ssl.SSLError as error:
                raise self._error(
                    f"has no TLS that this machine trusts ({one_line(str(error))}); correct policy.url, "
                    "or trust its certificate"
                ) from error
            except OSError as error:  # a TimeoutError is one
                why = error
            if time.monotonic() + RETRY_S > deadline:
                raise self._error(
                    f"did not open a connection in policy.connect_timeout_s={wait_s:g} s "
                    f"({one_line(str(why)) or type(why).__name__}); start the server, or correct policy.url"
                ) from why
            time.sleep(RETRY_S)

    def close(self) -> None:
        """Leave; whatever the server still had to say is lost."""
        self._socket = None
        with contextlib.suppress(ConnectionClosed, OSError):
            self._leave.close()

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Close the connection where anything is raised inside, by the handler of a signal too.

        An answer that is still on its way would be taken for the next one's.
        """
        try:
            yield
        except BaseException:
            self.close()
            raise

    @property
    def is_dropped(self) -> bool:
        """Whether this side has given the connection up."""
        return self._socket is None

    @property
    def is_open(self) -> bool:
        """Whether neither side has ended the connection yet, as far as this side knows."""
        return self._socket is not None and self._socket.state is State.OPEN

    def send(self, message: bytes) -> None:
        """Send one message; RemoteError where it did not leave in time."""
        self._do(lambda connection: self._send(connection, message))

    def expect_nothing(self) -> None:
        """RemoteError where a message has come already: it would be taken for the next answer."""
        message = self._do(_waiting)
        if isinstance(message, str):
            raise self.told("sent text that nobody asked for", message)
        if message is not None:
            raise self.fault("sent an answer that nobody asked for; look at the server")

    def receive(self) -> Any:
        """Wait for one message and read it.

        Raises:
            RemoteError: it is late, too large, or not a message; or the server sent text, which is how it
                tells of its own error.
        """
        message = self._do(lambda connection: connection.recv(self._timeout_s))
        if isinstance(message, str):
            raise self.told("sent text instead of actions", message)
        try:
            return unpack(message)
        except WireError as error:
            raise self.fault(f"sent something else: {error}; is policy.protocol right?") from error

    def told(self, what: str, text: str) -> RemoteError:
        """`fault` for what the server says of its own error: the last line, where a traceback has it.

        The log gets all of it.
        """
        log.error("%s %s:\n%s", self._url, what, visible(text, lines=True))
        return self.fault(f"{what}: {last_line(text)}; its own log has more")

    def fault(self, what: str) -> RemoteError:
        """Close the connection, on which a late answer could still come, and word the error."""
        self.close()
        return self._error(what)

    def _error(self, what: str) -> RemoteError:
        return RemoteError(f"policy.url={self._url} {what}")

    def _connect(self, open_s: float) -> ClientConnection:
        opening = connect(
            self._url,
            compression=None,
            additional_headers=self._headers,
            proxy=None,
            open_timeout=open_s,
            close_timeout=CLOSE_S,
            ping_interval=None,  # a server that compiles its first call answers no pings
            max_size=self._max_bytes,
            logger=quiet,
            create_connection=_Straight,
        )
        connection = self._leave.enter_context(opening)
        limit = struct.pack("@ll", int(self._timeout_s), int(self._timeout_s % 1 * 1e6))
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return connection

    def _do(self, action: Callable[[ClientConnection], T]) -> T:
        if self._socket is None:
            raise self._error("is not connected; an episode connects again at its first inference")
        with self.closing_on_error():
            try:
                return action(self._socket)
            except RemoteError:
                raise
            except TimeoutError as error:
                raise self._error(
                    f"did not answer in policy.timeout_s={self._timeout_s:g} s; "
                    "raise it, or look at the server"
                ) from error
            except ConnectionClosed as error:
                cause = error.__cause__
                if cause is not None and not isinstance(cause, ENDS):
                    raise cause from None  # of a signal's handler, which websockets takes for its own
                raise self._error(self._why_closed(error)) from error
            except OSError as error:
                raise self._error(
                    f"did not take a message ({one_line(str(error))}); look at the server"
                ) from error

    def _send(self, connection: ClientConnection, message: bytes) -> None:
        """Send; cut the connection when the time is over, because a slow reader takes ever more of it."""
        late = threading.Event()

        def cut() -> None:
            late.set()
            with contextlib.suppress(OSError):
                # not TLS's own, which would touch what the other thread writes with
                socket.socket.shutdown(connection.socket, socket.SHUT_RDWR)

        timer = threading.Timer(self._timeout_s, cut)
        timer.daemon = True
        timer.start()
        try:
            connection.send(message)
        except ConnectionClosed:
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        if late.is_set():
            raise self._error(self._not_taken())

    def _not_taken(self) -> str:
        return f"did not take a message in policy.timeout_s={self._timeout_s:g} s; look at the server"

    def _why_closed(self, error: ConnectionClosed) -> str:
        if error.sent is not None and error.sent.code == TOO_BIG and not error.rcvd_then_sent:
            return (
                f"sent a message of more than policy.max_message_mb={self._max_bytes // MEBIBYTE} MiB; "
                "raise it, or look at the server"
            )
        if isinstance(error.__cause__, BlockingIOError):  # SO_SNDTIMEO
            return self._not_taken()
        said = f"{error.rcvd.code} {one_line(error.rcvd.reason)}".strip() if error.rcvd else "no goodbye"
        return f"closed the connection before it answered ({said}); look at the server's log"


def _waiting(connection: ClientConnection) -> str | bytes | None:
    """Take a message that has come already; None where there is none."""
    try:
        return connection.recv(0)
    except TimeoutError:
        return None


def last_line(text: str) -> str:
    """The last line that is not empty: where a traceback has the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "nothing"


def one_line(text: str) -> str:
    """Shorten a server's words to a line of at most `MAX_LINE` characters, which no terminal obeys."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."
