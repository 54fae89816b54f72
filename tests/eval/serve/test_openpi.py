"""openpi's door: recorded messages of its client, answers, noise, and clients that misbehave."""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from policies.base import ActionChunk, EpisodeKey, Observation, Request
from policies.remote import openpi
from policies.remote.fields import CAMERAS
from policies.remote.wire import pack_openpi, unpack
from tests.eval.serve.served import EchoPolicy, Served, serving, shake_hands
from tests.optim.small import eager_policy, random_checkpoint
from tests.policies.remote.memory import forget_peak, peak_mb
from tests.policies.remote.recordings import messages, recording
from tests.policies.remote.servers import request


def observation(**changes: Any) -> dict[str, Any]:
    """What openpi's client sends: neither episode nor call."""
    written = openpi.write_observation(request(), CAMERAS, None) | changes
    return {key: value for key, value in written.items() if key not in ("episode", "call") or key in changes}


def ask(connection: ClientConnection, message: Any) -> Any:
    connection.send(message if isinstance(message, bytes | str) else pack_openpi(message))
    return unpack(connection.recv(10))


def test_recorded_messages_of_openpis_client_get_the_policys_own_actions() -> None:
    """recorded/README.md says how the messages were made; the client itself got the same answers."""
    policy = eager_policy(random_checkpoint())
    arrays = recording("openpi_client")
    with serving(policy) as served, served.connect() as connection:
        metadata = unpack(connection.recv(5))
        noise = EpisodeKey(**metadata["client"]["noise"])
        answers = [ask(connection, message) for message in messages("openpi_client", "sent")]
    assert noise == EpisodeKey("client", 0, 0, 7)
    asked = [(noise, 0), (noise, 1), (EpisodeKey("libero_spatial", 3, 1, 7), 4)]
    for i, ((key, call), answer) in enumerate(zip(asked, answers, strict=True)):
        images = {CAMERAS[0]: arrays[f"image{i}"], CAMERAS[1]: arrays[f"wrist_image{i}"]}
        seen = Observation(images, arrays[f"state{i}"], "pick up the black bowl")
        [chunk] = policy.infer([Request(seen, key, call)])
        np.testing.assert_array_equal(answer["actions"], chunk.actions_HJ)
        assert answer["actions"].dtype == np.float64
        assert answer["server_timing"]["infer_ms"] > 0
        assert set(answer["policy_timing"]) == {"vision_ms", "prefix_ms", "denoise_ms"}


def test_each_client_has_a_noise_of_its_own_and_all_share_one_thread() -> None:
    policy = EchoPolicy()
    with serving(policy) as served, served.greeted() as first, served.greeted() as second:
        ask(first, observation())
        ask(second, observation())
        ask(first, observation())
    keys = [(asked.episode.task_id, asked.call) for asked in policy.requests]
    assert keys == [(0, 0), (1, 0), (0, 1)]
    assert len(policy.threads) == 1
    assert policy.threads != {threading.get_ident()}


def test_an_observation_may_name_its_episode_and_call() -> None:
    policy = EchoPolicy()
    key = {"suite": "libero_10", "task_id": 5, "episode": 2, "seed": 9}
    with serving(policy) as served, served.greeted() as connection:
        ask(connection, observation(episode=key, call=6))
        ask(connection, observation())
    assert (policy.requests[0].episode, policy.requests[0].call) == (EpisodeKey("libero_10", 5, 2, 9), 6)
    assert policy.requests[1].call == 0


def test_metadata_says_whose_server_it_is_and_what_it_serves() -> None:
    with serving(EchoPolicy()) as served, served.connect() as connection:
        metadata = unpack(connection.recv(5))
    assert (metadata["server"], metadata["image_size"], metadata["replan_steps"]) == (
        "libero-vla-eval",
        None,
        3,
    )
    assert metadata["policy"] == {"policy": "echo", "checkpoint": "none", "weights_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("hello", "WireError: a message must be binary, got the text 'hello'"),
        (b"\xc1", "WireError: these 1 bytes are not a message"),
        ({}, "FieldError: the observation lacks 'observation/image'"),
        ([1], "FieldError: an observation must be a map"),
        (observation(prompt=3), "FieldError: prompt must be a text"),
        (observation(**{"observation/image": np.zeros((4, 4), np.uint8)}), r"got uint8 \(4, 4\)"),
        (observation(call=3), "FieldError: the observation lacks 'episode'"),
        (observation(prompt="raise"), "ValueError: cannot do that"),
        (observation(prompt="nan"), "the policy returned actions that are not finite"),
    ],
)
def test_a_wrong_message_ends_its_client_alone_with_one_line(message: Any, says: str) -> None:
    with serving(EchoPolicy()) as served, served.greeted() as other:
        with served.greeted() as connection:
            connection.send(message if isinstance(message, bytes | str) else pack_openpi(message))
            told = connection.recv(10)
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(10)
        assert ask(other, observation())["actions"].shape == (4, 7)
    assert isinstance(told, str)
    assert re.search(says, told)
    assert "\n" not in told
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    [line] = [line for line in served.said if "got an error" in line]
    assert re.match(r"client 1 \(127.0.0.1:\d+\) got an error: ", line)
    assert re.search(says, line)


def gigabyte(sock: socket.socket) -> None:
    """Send as much of it as is taken."""
    part = bytes(2**20)
    with contextlib.suppress(OSError):
        sock.sendall(b"\x82\xff" + struct.pack(">Q", 2**30) + b"\0\0\0\0")
        for _ in range(2**30 // len(part)):
            sock.sendall(part)


def vanish(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_a_frame(sock: socket.socket) -> None:
    sock.sendall(b"\x82\xff" + struct.pack(">Q", 1000) + b"\0\0\0\0" + b"half")
    sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("misbehave", "says"),
    [
        (gigabyte, "sent a message of more than server.max_message_mb=4 MiB"),
        (vanish, "left without a goodbye"),
        (half_a_frame, "left without a goodbye"),
        (lambda sock: sock.sendall(b"\xff" * 64), "broke the protocol"),
    ],
)
def test_a_client_that_breaks_the_protocol_is_one_line_and_the_others_go_on(
    misbehave: Callable[[socket.socket], None], says: str
) -> None:
    with serving(EchoPolicy()) as served, served.greeted() as other:
        before_mb = forget_peak()
        with served.greeted() as connection:
            misbehave(connection.socket)
            line = wait_for(served, "client 1 .*" + says)
        assert peak_mb() - before_mb < 64
        assert ask(other, observation())["actions"].shape == (4, 7)
    assert "\n" not in line


def wait_for(served: Served, pattern: str, patience_s: float = 10.0) -> str:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        for line in served.said:
            if re.match(pattern, line):
                return line
        time.sleep(0.02)
    raise AssertionError(f"nobody said {pattern}: {served.said}")


class TalkativePolicy(EchoPolicy):
    """Its chunks fill a client's buffers quickly."""

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        return [ActionChunk(np.zeros((60_000, 7)))]


def test_a_client_that_never_reads_is_ended_and_the_others_go_on() -> None:
    asked = frame(pack_openpi(observation()))
    with serving(TalkativePolicy(), patience_s=0.5) as served, served.greeted() as other:
        with served.shaken_hands() as sock:
            sock.sendall(asked * 8)
            wait_for(served, r"client 1 .*did not read its answers for server.patience_s=0.5 s")
        other.send(pack_openpi(observation()))
        assert unpack(other.recv(10))["actions"].shape == (60_000, 7)


def frame(message: bytes) -> bytes:
    """A binary frame of a client's, masked with zeros."""
    return b"\x82\xff" + struct.pack(">Q", len(message)) + b"\0\0\0\0" + message


def test_a_client_that_says_nothing_holds_nobody_up() -> None:
    with serving(EchoPolicy()) as served, served.connect(), served.greeted() as other:
        assert ask(other, observation())["actions"].shape == (4, 7)


def test_somebody_who_speaks_no_websocket_is_no_client() -> None:
    with serving(EchoPolicy()) as served:
        host, port = served.url.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(b"\x16\x03\x01\r\n\r\n")
            sock.recv(100)
        with served.greeted() as connection:
            assert ask(connection, observation())["actions"].shape == (4, 7)
    assert [session.number for session in served.server.sessions] == [0]


def test_a_fault_of_the_server_itself_is_one_line() -> None:
    with serving(EchoPolicy()) as served:
        served.server.sessions.append(None)  # type: ignore[arg-type]
        served.server.replan_steps = 0
        with served.connect() as connection, pytest.raises(ConnectionClosed):
            connection.recv(5)
        served.server.sessions.pop()
        assert "ValueError: replan_steps must be >= 1" in wait_for(served, "error: connection handler failed")


def test_a_key_that_nobody_reads_is_told_once() -> None:
    with serving(EchoPolicy()) as served, served.greeted() as connection:
        for _ in range(2):
            ask(connection, observation(depth=1))
    assert [line for line in served.said if "depth" in line] == [
        f"{served.server.sessions[0].name} sends 'depth', which is not read"
    ]


def get(served: Served, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(served.url.removeprefix("ws://"), timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_health_is_told_over_http_even_without_the_key() -> None:
    with serving(EchoPolicy(), api_key="secret") as served:
        assert get(served, "/healthz") == (200, "OK\n")
        assert get(served, "/health") == (200, '{"status": "ok"}\n')
        assert get(served, "/config") == (200, '{"applied": {}, "config": {}}\n')
        assert get(served, "/config?max_batch_size=3")[0] == 422


@pytest.mark.parametrize(
    "given",
    [
        [],
        [b"Api-Key wrong"],
        [b"secret"],
        [b"Api-Key secret", b"Api-Key secret"],
        [b"Api-Key wrong", b"Api-Key secret"],
        [b"Api-Key \xff\xfe"],
        [b"Api-Key s\xc3\xa9cret"],
        [b"Api-Key secret\xff"],
    ],
)
def test_a_client_without_the_key_is_refused(given: list[bytes]) -> None:
    with serving(EchoPolicy(), api_key="secret") as served:
        headers = b"".join(b"Authorization: " + key + b"\r\n" for key in given)
        host, port = served.url.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(shake_hands(host, headers))
            assert sock.recv(12) == b"HTTP/1.1 401"
        with served.connect(additional_headers={"Authorization": "Api-Key secret"}) as connection:
            connection.recv(5)
    assert any("came without the API key" in line for line in served.said)
    assert not any("secret" in line for line in served.said)


def test_a_browsers_page_is_refused() -> None:
    with (
        serving(EchoPolicy()) as served,
        pytest.raises(InvalidStatus) as refused,
        served.connect(origin="https://example.com"),
    ):
        pass
    assert refused.value.response.status_code == 403
