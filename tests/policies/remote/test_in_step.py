"""RemotePolicy and the server stay in step: no answer is taken for another question's."""

import re
import socket
import threading
import time
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection

from eval.runners.base import EpisodeTimeout
from eval.runners.watch import Watch
from policies.remote.link import Link, RemoteError
from policies.remote.wire import pack_openpi, unpack
from tests.eval.conftest import EPISODE
from tests.policies.remote.servers import ACTIONS, remote, request, serving

RECORD = replace(
    EPISODE, success=None, steps=0, actions_sha256=None, error_type="EpisodeTimeout", error_message="over"
)


def answer_to(message: bytes) -> dict[str, np.ndarray]:
    """Actions that name the episode and the call that were asked for."""
    asked = unpack(message)
    return {"actions": np.full((10, 7), asked["episode"]["episode"] * 10.0 + asked["call"])}


@pytest.mark.parametrize("fragments", [False, True])
def test_an_episode_that_is_ended_while_it_waits_leaves_no_answer_behind(fragments: bool) -> None:
    late = threading.Event()
    asked = []

    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({}))
        for message in connection:
            asked.append(message)
            answer = pack_openpi(answer_to(message))
            if len(asked) > 1:
                connection.send(answer)
            elif fragments:
                connection.send(part for part in (answer[:9], late.wait(10) and answer[9:]))
            elif late.wait(10):
                connection.send(answer)

    watch = Watch(0.3)
    with serving(handle) as url, watch.running():
        policy = remote(url, timeout_s=20.0)
        with pytest.raises(EpisodeTimeout), watch.episode(RECORD):
            policy.infer([request(0, episode=1)])
        late.set()
        time.sleep(0.1)
        executed = [policy.infer([request(call, episode=2)])[0].actions_HJ[0, 0] for call in range(3)]
    assert executed == [20, 21, 22]
    assert len(asked) == 4


def test_an_episode_that_is_ended_while_it_sends_is_told_as_that() -> None:
    with SlowReader(piece=0) as url:
        link = Link(url, timeout_s=20.0, max_bytes=2**20)
        link.open(5.0)
        watch = Watch(0.3)
        with watch.running(), pytest.raises(EpisodeTimeout), watch.episode(RECORD):
            link.send(bytes(2**26))
    assert link.is_dropped


def test_an_interrupt_between_question_and_answer_leaves_no_answer_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({}))
        for message in connection:
            connection.send(pack_openpi(answer_to(message)))

    def interrupted(link: Link) -> None:
        raise KeyboardInterrupt

    with serving(handle) as url:
        policy = remote(url)
        with monkeypatch.context() as patched:
            patched.setattr(Link, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                policy.infer([request(0, episode=1)])
        [chunk] = policy.infer([request(0, episode=2)])
    assert chunk.actions_HJ[0, 0] == 20


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (pack_openpi({"actions": ACTIONS}), "sent an answer that nobody asked for; look at the server"),
        ("Traceback:\nKeyError: 'x'", "sent text that nobody asked for: KeyError: 'x'; its own log has more"),
    ],
)
def test_an_answer_too_many_is_a_fault_and_shifts_no_others(extra: bytes | str, says: str) -> None:
    asked, told = [], threading.Event()

    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({}))
        for message in connection:
            asked.append(message)
            connection.send(pack_openpi(answer_to(message)))
            if len(asked) == 1:
                connection.send(extra)
                told.set()

    with serving(handle) as url:
        policy = remote(url)
        policy.infer([request(0, episode=1)])
        assert told.wait(10)
        time.sleep(0.2)
        with pytest.raises(RemoteError, match=re.escape(f"policy.url={url} {says}")):
            policy.infer([request(1, episode=1)])
        [chunk] = policy.infer([request(0, episode=2)])
    assert chunk.actions_HJ[0, 0] == 20
    assert len(asked) == 2


class SlowReader:
    """A websocket whose server takes `piece` bytes of what is sent, every 0.1 s, for ever."""

    def __init__(self, piece: int) -> None:
        self._piece = piece
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> str:
        self._thread.start()
        return f"ws://127.0.0.1:{self._listening.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._listening.close()

    def _read(self) -> None:
        accepted, _ = self._listening.accept()
        with accepted:
            protocol = ServerProtocol()
            while not (events := protocol.events_received()):
                protocol.receive_data(accepted.recv(4096))
            protocol.send_response(protocol.accept(events[0]))
            accepted.sendall(b"".join(protocol.data_to_send()))
            while not self._ended.wait(0.1):
                if self._piece:
                    accepted.recv(self._piece)


@pytest.mark.parametrize("piece", [0, 65536], ids=["nothing", "little by little"])
def test_a_message_that_does_not_leave_in_time_is_an_error_in_time(piece: int) -> None:
    """One that is taken little by little makes every single write of the system's succeed."""
    with SlowReader(piece) as url:
        link = Link(url, timeout_s=0.5, max_bytes=2**20)
        link.open(5.0)
        start_s = time.monotonic()
        with pytest.raises(RemoteError, match=r"did not take a message in policy.timeout_s=0.5 s; look at"):
            link.send(bytes(2**26))  # more than the system buffers
        assert time.monotonic() - start_s < 5
    assert link.is_dropped


DAMAGED = msgpack.packb(
    {"x": {b"__ndarray__": True, b"data": b"\xff" * 4, b"dtype": "<U1", b"shape": [1]}, "other": "policy"}
)


def test_a_greeting_that_cannot_be_read_is_one_line_and_leaves_no_connection_that_was_not_checked() -> None:
    connections = []

    def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(pack_openpi({}) if len(connections) == 1 else DAMAGED)
        for message in connection:
            connection.send(pack_openpi(answer_to(message)))

    with serving(handle) as url:
        policy = remote(url)
        policy.close()
        for episode in (1, 2):
            with pytest.raises(RemoteError, match=r"sent something else: a text in an array must be Unicode"):
                policy.infer([request(0, episode)])
        assert policy._link.is_dropped
    assert len(connections) == 3


def test_a_greeting_that_this_side_fails_on_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: object) -> object:
        raise SystemError

    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({}))
        connection.recv()

    with serving(handle) as url:
        policy = remote(url)
        policy.close()
        monkeypatch.setattr("policies.remote.policy.plain", fail)
        with pytest.raises(SystemError):
            policy.infer([request()])
        assert policy._link.is_dropped
