"""A server in a thread, and small policies to put behind it."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from eval.serve.cli import bind
from eval.serve.doors import make_door
from eval.serve.inference import Inference
from eval.serve.server import PolicyServer
from policies.base import ActionChunk, Policy, Request
from policies.remote.fields import CAMERAS
from policies.remote.vla_eval import Message, read_message
from policies.remote.wire import pack_vla_eval, unpack


class EchoPolicy:
    """Answers with numbers of the request: its call, its episode, its first pixel and its thread."""

    name = "echo"
    cameras = CAMERAS
    needs_privileged = False
    replan_steps = 3

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.threads: set[int] = set()

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        [request] = requests
        self.requests.append(request)
        self.threads.add(threading.get_ident())
        if request.observation.instruction == "raise":
            raise ValueError("cannot do\nthat")
        actions = np.zeros((4, 7))
        actions[:, 0] = request.call
        actions[:, 1] = request.episode.task_id
        actions[:, 2] = request.observation.images[CAMERAS[0]][0, 0, 0]
        actions[:, 3] = np.arange(4)
        if request.observation.instruction == "nan":
            actions[0, 0] = np.nan
        return [ActionChunk(actions)]

    def provenance(self) -> dict[str, Any]:
        return {"checkpoint": "none", "weights_sha256": "0" * 64}

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {}


class HangingPolicy(EchoPolicy):
    """Never answers."""

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        time.sleep(1000)
        return super().infer(requests)


def shake_hands(host: str, headers: bytes = b"") -> bytes:
    """What a websocket's client says first, with more headers."""
    return (
        f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
    ).encode() + b"%s\r\n" % headers


@dataclass
class Served:
    """A server that runs: its address, itself, and what it said."""

    url: str
    server: PolicyServer
    said: list[str] = field(default_factory=list)

    def connect(self, **options: Any) -> contextlib.AbstractContextManager[ClientConnection]:
        return connect(self.url, **{"compression": None, "max_size": None, "proxy": None, **options})

    @contextlib.contextmanager
    def shaken_hands(self) -> Iterator[socket.socket]:
        """The bare socket of a client that nobody reads for."""
        host, port = self.url.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(shake_hands(host))
            assert sock.recv(12) == b"HTTP/1.1 101"
            yield sock

    @contextlib.contextmanager
    def greeted(self) -> Iterator[ClientConnection]:
        """An openpi client that has read the metadata."""
        with self.connect() as connection:
            connection.recv(5)
            yield connection


@contextlib.contextmanager
def serving(policy: Policy, protocol: str = "openpi", **options: Any) -> Iterator[Served]:
    """Serve a policy on this machine, on a free port unless `port` names one."""
    said: list[str] = []
    ready = threading.Event()
    started: list[Any] = []
    whole_chunks = options.pop("whole_chunks", True)
    port = options.pop("port", 0)

    async def run() -> None:
        door = make_door(policy, protocol, "chunk" if whole_chunks else "action")
        inference = Inference()
        await inference.build(lambda: policy)
        given = {"max_message_mb": 4, "patience_s": 5.0, "api_key": None, **options}
        server = PolicyServer(door, inference, 7, policy.replan_steps, say=said.append, **given)
        started.extend([server, asyncio.get_running_loop()])
        await server.run(sock, ready.set)
        inference.end()

    with bind("127.0.0.1", port) as sock:
        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        assert ready.wait(10)
        server, loop = started
        try:
            yield Served(f"ws://127.0.0.1:{sock.getsockname()[1]}", server, said)
        finally:
            with contextlib.suppress(RuntimeError):  # the server has ended by itself
                loop.call_soon_threadsafe(server.stop)
            thread.join(20)
            assert not thread.is_alive()


class VlaEvalClient:
    """Says what vla-eval's client says, over a connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seq = 0

    def send(self, kind: str, payload: Any) -> None:
        self.seq += 1
        self.connection.send(pack_vla_eval(Message(kind, payload, self.seq).to_wire()))

    def ask(self, kind: str, payload: Any) -> Message:
        """Send, and read the answer, which has the same number."""
        self.send(kind, payload)
        answer = read_message(unpack(self.connection.recv(10)))
        assert answer.seq == self.seq
        return answer
