"""Clients fill neither the console nor the server's memory, however many they are."""

import json
import socket
from pathlib import Path

import pytest

from eval.serve import record, server
from eval.serve.lines import MAX_OF_ADDRESS, MAX_OF_ALL, WINDOW_S, Lines
from eval.serve.session import Session, join_ended
from policies.chunking import ActionQueue
from tests.eval.serve.served import EchoPolicy, Served, serving, shake_hands
from tests.eval.serve.test_openpi import wait_for
from tests.policies.remote.servers import remote, request


class Clock:
    """Stands still until it is set."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_an_address_has_so_many_lines_in_a_minute_and_another_one_its_own() -> None:
    said: list[str] = []
    clock = Clock()
    lines = Lines(said.append, clock)
    told = [lines.tell("a", f"line {i}") for i in range(3 * MAX_OF_ADDRESS)]
    assert told[MAX_OF_ADDRESS - 1 : MAX_OF_ADDRESS + 1] == [f"line {MAX_OF_ADDRESS - 1}", None]
    assert len(said) == MAX_OF_ADDRESS + 1
    assert said[-1] == f"a has had {MAX_OF_ADDRESS} lines in this minute; the next ones are not shown"
    assert lines.tell("b", "hello") == "hello"
    clock.now_s += WINDOW_S
    assert lines.tell("a", "again") == "again"
    assert said[-2:] == [f"lines about clients that were not shown: {2 * MAX_OF_ADDRESS}", "again"]


def test_any_number_of_addresses_have_so_many_lines_together() -> None:
    said: list[str] = []
    lines = Lines(said.append, Clock())
    for i in range(10 * MAX_OF_ALL):
        lines.tell(f"10.0.{i // 256}.{i % 256}", "is here")
    assert len(said) == MAX_OF_ALL + 1
    assert said[-1].startswith(f"all clients have had {MAX_OF_ALL} lines in this minute")


def test_a_line_is_one_and_short_and_no_terminal_obeys_it() -> None:
    said: list[str] = []
    Lines(said.append).tell("a", "\x1b[2J\nx" + "long " * 10_000)
    [line] = said
    assert line.isprintable()
    assert len(line) <= 300


def knock(served: Served, first_words: bytes) -> bytes:
    host, port = served.url.removeprefix("ws://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(first_words)
        return sock.recv(12)


@pytest.mark.parametrize(
    ("api_key", "first_words", "answer"),
    [
        (None, shake_hands("x"), b"HTTP/1.1 101"),
        ("secret", shake_hands("x"), b"HTTP/1.1 401"),
    ],
    ids=["connects", "refused keys"],
)
def test_hundreds_of_connections_are_a_bounded_number_of_lines(
    api_key: str | None, first_words: bytes, answer: bytes
) -> None:
    with serving(EchoPolicy(), api_key=api_key) as served:
        for _ in range(3 * MAX_OF_ADDRESS):
            assert knock(served, first_words) == answer
        wait_for(served, r".* has had \d+ lines in this minute; the next ones are not shown")
    assert len(served.said) == MAX_OF_ADDRESS + 1
    assert len(served.server.notes) <= MAX_OF_ADDRESS


def test_of_many_clients_the_oldest_are_joined_and_no_latency_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "MAX_SESSIONS", 3)
    with serving(EchoPolicy()) as served, served.greeted():
        for number in range(1, 7):
            client = remote(served.url)
            for call in range(number):
                client.infer([request(call)])
            client.close()
            wait_for(served, rf"client {number} .* left")
    record.write(tmp_path / "serve.json", {}, served.server.sessions)
    content = json.loads((tmp_path / "serve.json").read_text())
    told = [(row["client"], row["clients"], row["inferences"]) for row in content["clients"]]
    assert told == [(0, 1, 0), (1, 5, 15), (6, 1, 6)]
    assert content["clients"][1]["address"] == content["clients"][1]["left"] == "several"
    assert served.server.sessions[1].name == "client 1 and 4 more (several)"
    assert content["infer"]["n"] == content["total"]["n"] == 21


def test_clients_that_are_still_here_are_not_joined() -> None:
    sessions = [Session(i, "a", 7, ActionQueue(1)) for i in range(5)]
    sessions[3].left = "left"
    join_ended(sessions, 2)
    assert [session.number for session in sessions] == [0, 1, 2, 3, 4]
