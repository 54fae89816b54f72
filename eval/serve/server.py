"""The server: accepts clients, serves each in turn, ends cleanly."""

import asyncio
import contextlib
import hmac
import json
import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from eval.episodes.signals import COPIES_S, ENDING
from eval.serve.doors import Client, ClientFault, Door, read, word
from eval.serve.inference import Inference, PolicyGone
from eval.serve.lines import Lines
from eval.serve.session import Session, join_ended
from policies.chunking import ActionQueue
from policies.remote.wire import MEBIBYTE, is_quick
from policies.text import visible

log = logging.getLogger(__name__)

CLOSE_S = 2.0  # how long a client may take to say goodbye
PING_S, PONG_S = 30.0, 120.0  # a client that does not answer is gone; some are busy with a simulator
ERROR, AWAY = 1011, 1001  # websocket's statuses
TOO_BIG = 1009
REASON_BYTES = 120  # of a websocket's goodbye; 123 at most
MAX_NOTES = 1000  # kept for the record
MAX_SESSIONS = 1000  # likewise; the oldest of more are joined
NOBODY = "somebody who was no client yet"  # in the place of an address
MAX_CLIENT_NOTES = 20  # of one client
READERS = 2  # messages that are unpacked at the same time, each with the memory that `wire.unpack` may take
KEY_PREFIX = "Api-Key "
ENDED = "was told that the server ends"


@dataclass
class PolicyServer:
    """Serves one policy to many clients.

    Non-obvious behaviors:
        * Browsers are refused: a page from anywhere could talk to a server on 127.0.0.1.
        * Of one client there is at most one observation in the policy's queue, so nobody starves.

    Attributes:
        patience_s: how long a client may leave an answer unread.
        say: prints a line.
    """

    door: Door
    inference: Inference
    seed: int
    replan_steps: int
    max_message_mb: int
    patience_s: float
    api_key: str | None
    say: Callable[[str], None]
    sessions: list[Session] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lost: str | None = None
        self._clients = 0
        self._lines = Lines(self.say)
        self._stop = asyncio.Event()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    @property
    def lost(self) -> str | None:
        """Why the policy cannot answer any more; None while it can."""
        return self._lost

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()

    async def run(self, sock: socket.socket, on_ready: Callable[[], None]) -> None:
        """Serve on a bound socket until `stop`, or until the policy is lost."""
        of_websockets = logging.getLogger("eval.serve.websockets")
        of_websockets.propagate = False
        of_websockets.handlers = [_OneLine(partial(self._note, NOBODY))]
        # clients' sockets inherit it: without it, the port stays taken for a minute after this server's end
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        async with serve(
            self._serve,
            sock=sock,
            process_request=self._answer_http,
            origins=[None],
            compression=None,
            max_size=self.max_message_mb * MEBIBYTE,
            max_queue=1,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=CLOSE_S,
            server_header=None,
            logger=of_websockets,
        ):
            on_ready()
            await self._stop.wait()
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, connection: ServerConnection) -> None:
        host, port, *_ = connection.remote_address
        queue = ActionQueue(self.replan_steps)
        session = Session(self._clients, f"{host}:{port}", self.seed, queue)
        self._clients += 1
        self.sessions.append(session)
        join_ended(self.sessions, MAX_SESSIONS)
        self._lines.tell(host, f"{session.name} is here")
        client = Client(
            session,
            aiter(connection),
            self._read,
            partial(self._send, connection),
            self.inference.infer,
            partial(self._note_of, host, session),
        )
        try:
            await self.door.serve(client)
            session.left = ENDED if self._stop.is_set() else "left"
        except ClientFault as fault:
            session.left = str(fault)
            await self._close(connection, str(fault))
        except ConnectionClosed as closed:
            session.left = self._why_closed(closed)
        except PolicyGone as gone:
            session.left = str(gone)
            self._lost = self._lost or str(gone)
            await self._close(connection, str(gone))
            self.stop()
        except Exception as error:  # noqa: BLE001  the client is told, and the others go on
            session.left = f"met an error of the server's own: {word(error)}"
            trace = visible("".join(traceback.format_exception(error)), lines=True)
            log.error("%s met an error of the server's own:\n%s", session.name, trace)
            await self._close(connection, session.left)
        finally:
            session.left = session.left or ENDED
            self._lines.tell(host, f"{session.name} {session.left}")

    async def _read(self, message: str | bytes) -> Any:
        """Unpack a message, beside the answers to others where that takes longer than to hand it over."""
        if isinstance(message, str) or is_quick(message):
            return read(message)
        return await asyncio.get_running_loop().run_in_executor(self._readers, read, message)

    async def _send(self, connection: ServerConnection, message: bytes | str) -> None:
        try:
            await asyncio.wait_for(connection.send(message), self.patience_s)
        except TimeoutError as error:
            connection.transport.abort()
            raise ClientFault(
                f"did not read its answers for server.patience_s={self.patience_s:g} s"
            ) from error

    async def _close(self, connection: ServerConnection, reason: str) -> None:
        short = reason.encode()[:REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(ConnectionClosed, OSError):
            await connection.close(ERROR, short)

    def _why_closed(self, closed: ConnectionClosed) -> str:
        if closed.sent is not None and closed.sent.code == TOO_BIG and not closed.rcvd_then_sent:
            return f"sent a message of more than server.max_message_mb={self.max_message_mb} MiB"
        if self._stop.is_set():
            return ENDED
        if closed.rcvd is not None:
            return " ".join(f"closed with {closed.rcvd.code} {closed.rcvd.reason}".split())
        if closed.sent is not None:
            return f"broke the protocol, or did not answer: {closed.sent.reason or closed.sent.code}"
        return "left without a goodbye"

    def _note_of(self, host: str, session: Session, words: str) -> None:
        """Note what a client did, its first times; it must not fill the console."""
        session.notes += 1
        if session.notes <= MAX_CLIENT_NOTES:
            self._note(host, f"{session.name} {words}")
        if session.notes == MAX_CLIENT_NOTES:
            self._note(host, f"{session.name} has had {MAX_CLIENT_NOTES} lines; the next ones are not shown")

    def _note(self, host: str, words: str) -> None:
        line = self._lines.tell(host, words)
        if line is not None and len(self.notes) < MAX_NOTES:
            self.notes.append(line)

    def _answer_http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer plain HTTP, and refuse clients without the key; None lets a client in."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if path == "/health":
            return _json(connection, HTTPStatus.OK, {"status": "ok"})
        if path == "/config":
            if path != request.path:
                errors = {"errors": ["nothing can be changed while it serves; start it with other keys"]}
                return _json(connection, HTTPStatus.UNPROCESSABLE_ENTITY, errors)
            return _json(connection, HTTPStatus.OK, {"applied": {}, "config": {}})
        if self.api_key is not None:
            given = request.headers.get_all("Authorization")
            right = f"{KEY_PREFIX}{self.api_key}"
            if len(given) != 1 or not given[0].isascii() or not hmac.compare_digest(given[0], right):
                host = connection.remote_address[0]
                self._note(host, f"{host} came without the API key")
                return connection.respond(HTTPStatus.UNAUTHORIZED, "an API key is needed\n")
        return None


def _json(connection: ServerConnection, status: HTTPStatus, content: object) -> Response:
    response = connection.respond(status, json.dumps(content) + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response


class _OneLine(logging.Handler):
    """What websockets logs of its own or our faults while it serves a client, as one line each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._say(f"error: {record.getMessage()}" + (f" ({type(error).__name__}: {error})" if error else ""))


def on_signals(loop: asyncio.AbstractEventLoop, react: Callable[[int], None]) -> None:
    """Have the loop call `react` at the first signal of `ENDING`; a second one ends the process at once.

    What the process was told to ignore at its start, SIGTERM apart, stays ignored.
    """
    came: list[float] = []

    def notice(number: int) -> None:
        now_s = time.monotonic()
        came.append(now_s)
        if len(came) == 1:
            react(number)
        elif number != signal.SIGHUP and now_s - came[0] > COPIES_S:
            os._exit(128 + number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
            loop.add_signal_handler(number, notice, number)
