"""RemotePolicy connects: to a server that is late, refuses, or is no server at all."""

import re
import socket
import threading
import time
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from policies.remote.link import RemoteError
from tests.policies.remote.servers import ACTIONS, answering, remote, request, serving


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def test_nobody_there_is_one_line_after_the_wait(free_port: int) -> None:
    start_s = time.monotonic()
    with pytest.raises(RemoteError, match=r"did not open a connection in policy.connect_timeout_s=0.5 s"):
        remote(f"ws://127.0.0.1:{free_port}", connect_timeout_s=0.5)
    assert time.monotonic() - start_s < 5


def test_a_server_that_starts_late_is_waited_for(free_port: int) -> None:
    urls = []

    def start() -> None:
        time.sleep(0.5)
        with serve(answering({"actions": ACTIONS}), "127.0.0.1", free_port, close_timeout=0.2) as server:
            urls.append(server)
            server.serve_forever()

    thread = threading.Thread(target=start)
    thread.start()
    policy = remote(f"ws://127.0.0.1:{free_port}", connect_timeout_s=20.0)
    policy.infer([request()])
    policy.close()
    urls[0].shutdown()
    thread.join()


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "name the variable that holds its key"), (404, "HTTP 404, it is no policy server")],
)
def test_a_refusal_is_told_at_once(status: int, says: str) -> None:
    options = {"process_request": lambda connection, _: connection.respond(status, "no\n")}
    with serving(answering({}), **options) as url, pytest.raises(RemoteError, match=says):
        remote(url, connect_timeout_s=30.0)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("place", ["/elsewhere", "{other}"])
def test_a_server_that_sends_its_clients_on_is_not_followed(status: int, place: str) -> None:
    came: list[Any] = []
    headers = {"Location": place}

    def process_request(connection: ServerConnection, http: Any) -> Any:
        came.append(http.path)
        response = connection.respond(status, "elsewhere\n")
        response.headers["Location"] = headers["Location"]
        return response

    with (
        serving(answering({}), process_request=lambda *parts: came.append("other")) as other,
        serving(answering({}), process_request=process_request) as url,
    ):
        headers["Location"] = place.format(other=other)
        with pytest.raises(RemoteError, match=re.escape(f"sends its clients on to '{headers['Location']}'")):
            remote(url, connect_timeout_s=30.0)
    assert came == ["/"]


@pytest.mark.parametrize(("places", "says"), [([], "nowhere"), (["/a", "ws://b"], "/a and ws://b")])
def test_a_server_that_sends_its_clients_nowhere_or_to_two_places_is_one_line(
    places: list[str], says: str
) -> None:
    def process_request(connection: ServerConnection, _: Any) -> Any:
        response = connection.respond(302, "")
        for place in places:
            response.headers["Location"] = place  # which adds one
        return response

    with (
        serving(answering({}), process_request=process_request) as url,
        pytest.raises(RemoteError, match=f"sends its clients on to '{says}'"),
    ):
        remote(url)


def test_a_server_that_is_not_ready_is_asked_again() -> None:
    answers = iter([503, 503])

    def process_request(connection: ServerConnection, _: Any) -> Any:
        status = next(answers, None)
        return None if status is None else connection.respond(status, "building\n")

    with serving(answering({"actions": ACTIONS}), process_request=process_request) as url:
        remote(url).infer([request()])


def test_something_that_speaks_no_websocket_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            accepted, _ = server.accept()
            accepted.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
            accepted.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RemoteError, match=r"does not speak websocket"):
            remote(f"ws://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def process_request(connection: ServerConnection, http: Any) -> None:
        seen.append(http.headers.get("Authorization"))

    monkeypatch.setenv("KEY_OF_A_TEST", "secret")
    with serving(answering({}), process_request=process_request) as url:
        remote(url, api_key_env="KEY_OF_A_TEST")
    assert seen == ["Api-Key secret"]
    for broken in ("two\nlines", "schlüssel"):
        monkeypatch.setenv("KEY_OF_A_TEST", broken)
        with pytest.raises(ValueError, match=r"KEY_OF_A_TEST must hold a key of printable ASCII") as refused:
            remote("ws://127.0.0.1:1", api_key_env="KEY_OF_A_TEST")
        assert broken not in str(refused.value)
    monkeypatch.delenv("KEY_OF_A_TEST")
    with pytest.raises(ValueError, match=r"policy.api_key_env=KEY_OF_A_TEST is not set"):
        remote("ws://127.0.0.1:1", api_key_env="KEY_OF_A_TEST")


def test_a_server_without_tls_is_told_at_once() -> None:
    start_s = time.monotonic()
    with (
        serving(answering({})) as url,
        pytest.raises(RemoteError, match=r"has no TLS .*; correct policy.url, or trust its certificate"),
    ):
        remote(url.replace("ws://", "wss://"), connect_timeout_s=30.0)
    assert time.monotonic() - start_s < 10
