"""One client takes neither the others' time nor all of the console; the server names faults of its own."""

import asyncio
import re
import threading
from typing import Any

import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from eval.serve import doors
from eval.serve.inference import Inference, PolicyGone
from eval.serve.server import MAX_CLIENT_NOTES
from policies.remote.fields import MAX_UNREAD
from policies.remote.link import MAX_LINE
from policies.remote.wire import pack_openpi, unpack
from tests.eval.serve import test_vla_eval
from tests.eval.serve.served import EchoPolicy, VlaEvalClient, serving
from tests.eval.serve.test_openpi import ask, observation, wait_for
from tests.optim.small import eager_policy, random_checkpoint
from tests.policies.remote.servers import request


def test_a_message_that_takes_long_to_read_holds_no_other_client_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slowly(message: bytes) -> Any:
        if b"__image__" in message:
            reading.set()
            assert go_on.wait(10)
        return unpack(message)

    monkeypatch.setattr(doors, "unpack", slowly)
    with serving(EchoPolicy()) as served, served.greeted() as slow, served.greeted() as other:
        slow.send(pack_openpi({"an image to decode": "__image__"}))
        assert reading.wait(10)
        assert ask(other, observation())["actions"].shape == (4, 7)
        go_on.set()
        assert "lacks 'observation/image'" in slow.recv(10)


def say_to_openpi(connection: ClientConnection, observations: list[dict[str, Any]]) -> None:
    connection.recv(5)
    for strange in observations:
        ask(connection, observation(**strange))


def say_to_vla_eval(connection: ClientConnection, observations: list[dict[str, Any]]) -> None:
    client = VlaEvalClient(connection)
    for strange in observations:
        assert client.ask("observation", test_vla_eval.observation(**strange)).type == "action"


@pytest.mark.parametrize(("protocol", "say"), [("openpi", say_to_openpi), ("vla_eval", say_to_vla_eval)])
def test_thousands_of_unknown_keys_are_one_line(protocol: str, say: Any) -> None:
    observations = [{f"{i} {number}": 0 for number in range(4000)} for i in range(2)]
    with serving(EchoPolicy(), protocol) as served, served.connect() as connection:
        say(connection, observations)
    [line] = [line for line in served.said if "which is not read" in line]
    assert len(line) < 400
    assert "'0 0', '0 1'" in line
    assert len(served.server.sessions[0].noted) <= MAX_UNREAD


def test_a_client_that_goes_on_being_wrong_has_a_bounded_number_of_lines() -> None:
    with serving(EchoPolicy(), "vla_eval") as served, served.connect() as connection:
        client = VlaEvalClient(connection)
        for _ in range(3 * MAX_CLIENT_NOTES):
            assert client.ask("observation", {}).type == "error"
    assert len([line for line in served.said if "got an error" in line]) == MAX_CLIENT_NOTES
    assert len([line for line in served.said if "the next ones are not shown" in line]) == 1
    assert len(served.server.notes) == MAX_CLIENT_NOTES + 1


class SomethingElse(EchoPolicy):
    """Answers with what no door can put into a message."""

    def infer(self, requests: Any) -> Any:
        [chunk] = super().infer(requests)
        return [chunk.__class__(chunk.actions_HJ, {"vision": object()})]


def test_an_error_of_the_servers_own_is_told_as_that(caplog: pytest.LogCaptureFixture) -> None:
    with serving(SomethingElse()) as served, served.greeted() as other:
        with served.greeted() as connection:
            connection.send(pack_openpi(observation()))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(10)
        line = wait_for(
            served, r"client 1 .*met an error of the server's own: WireError: a message cannot hold"
        )
        other.close()
        wait_for(served, r"client 0 .* left")
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason[:30]) == (1011, "met an error of the server's o")
    assert "the server ends" not in line
    assert "Traceback" in caplog.text


def test_a_policy_that_gets_no_thread_is_not_told_as_the_servers_end() -> None:
    async def ask(inference: Inference) -> None:
        await inference.infer(request())

    def no_thread(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    inference = Inference()
    inference._thread.submit = no_thread  # type: ignore[method-assign]
    with pytest.raises(PolicyGone, match=r"^the policy cannot run: can't start new thread$"):
        asyncio.run(ask(inference))
    ended = Inference()
    ended.end()
    with pytest.raises(PolicyGone, match=r"^the server ends$"):
        asyncio.run(ask(ended))


def test_a_goodbye_of_several_lines_is_one() -> None:
    with serving(EchoPolicy()) as served, served.greeted() as connection:
        connection.close(4000, "bye\nerror: the machine is on fire")
        wait_for(served, r"client 0 .*closed with 4000 bye error: the machine is on fire")


def test_a_clients_words_do_not_end_the_server() -> None:
    with serving(eager_policy(random_checkpoint())) as served, served.greeted() as other:
        with served.greeted() as connection:
            connection.send(pack_openpi(observation(prompt="CUDA error " * 300)))
            told = connection.recv(10)
        assert ask(other, observation())["actions"].shape == (10, 7)
        assert served.server.lost is None
    assert isinstance(told, str)
    assert re.match(r"ValueError: prompt must have .*CUDA error", told)
    assert len(told) <= MAX_LINE


class Raising(EchoPolicy):
    """Raises one error for every request."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def infer(self, requests: Any) -> Any:
        self.threads.add(threading.get_ident())
        raise self.error


def test_a_lost_gpu_ends_the_server_with_a_line() -> None:
    lost = torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with DSA\x1b[2J")
    with serving(Raising(lost)) as served, served.greeted() as connection:
        connection.send(pack_openpi(observation()))
        with pytest.raises(ConnectionClosed):
            connection.recv(10)
        wait_for(
            served, r"client 0 .*the policy lost its GPU: CUDA error: unspecified launch failure Compile"
        )
    assert served.server.lost is not None
    assert served.server.lost.isprintable()


@pytest.mark.parametrize("protocol", ["openpi", "vla_eval"])
def test_an_error_of_any_length_is_a_short_line(protocol: str) -> None:
    policy = Raising(ValueError("\x1b[2J" + "long " * 100_000))
    with serving(policy, protocol) as served, served.connect() as connection:
        if protocol == "openpi":
            connection.recv(5)
            connection.send(pack_openpi(observation()))
            told = connection.recv(10)
        else:
            answer = VlaEvalClient(connection).ask("observation", test_vla_eval.observation())
            told = answer.payload["error"]
        line = wait_for(served, r"client 0 .*got an error: ValueError: .x1b.2Jlong long")
    assert isinstance(told, str)
    for words in (told, line):
        assert words.isprintable()
        assert len(words) < MAX_LINE + 100


def test_whether_the_gpu_is_lost_is_asked_in_the_policys_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask_where(error: Exception) -> bool:
        asked.append(threading.get_ident())
        return False

    monkeypatch.setattr("eval.serve.inference.is_device_lost", ask_where)
    policy = Raising(ValueError("no"))
    with serving(policy) as served, served.greeted() as connection:
        connection.send(pack_openpi(observation()))
        connection.recv(10)
    assert asked == list(policy.threads)
