"""vla-eval's door: recorded messages of its client, episodes, one action an observation, errors."""

from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from policies.base import EpisodeKey, Request
from policies.remote import vla_eval
from policies.remote.fields import CAMERAS
from policies.remote.link import RemoteError
from policies.remote.vla_eval import read_message
from policies.remote.wire import unpack
from tests.eval.serve.served import EchoPolicy, VlaEvalClient, serving
from tests.optim.small import eager_policy, random_checkpoint
from tests.policies.remote.recordings import messages
from tests.policies.remote.servers import remote, request


def observation(**changes: Any) -> dict[str, Any]:
    written = vla_eval.write_observation(request(), vla_eval.Form()) | changes
    return {key: value for key, value in written.items() if key not in ("episode", "call") or key in changes}


def test_recorded_messages_of_vla_evals_client_get_the_policys_own_actions() -> None:
    """recorded/README.md says how the messages were made; the client itself got the same answers."""
    policy = eager_policy(random_checkpoint())
    recorded = messages("vla_eval_client", "sent")
    with serving(policy, "vla_eval") as served:
        for number in range(3):  # png, jpeg, raw: a connection each
            with served.connect() as connection:
                calls = 0
                for message in recorded[5 * number : 5 * number + 5]:
                    sent = read_message(unpack(message))
                    connection.send(message)
                    if sent.type not in ("hello", "observation"):
                        continue
                    answer = read_message(unpack(connection.recv(10)))
                    assert answer.seq == sent.seq
                    if sent.type == "hello":
                        assert answer.type == "hello"
                        assert answer.payload["protocol_version"] == 1
                        assert answer.payload["observation_params"]["quat_no_antipodal"] is True
                        continue
                    received = vla_eval.read_observation(sent.payload, CAMERAS)
                    noise = EpisodeKey("client", number, 0, 7)
                    [chunk] = policy.infer([Request(received.observation, noise, calls)])
                    np.testing.assert_array_equal(answer.payload["actions"], chunk.actions_HJ)
                    calls += 1
                assert calls == 2


def test_an_episode_begins_its_noise_anew() -> None:
    policy = EchoPolicy()
    with serving(policy, "vla_eval") as served, served.connect() as connection:
        client = VlaEvalClient(connection)
        for _ in range(2):
            client.send("episode_start", {"task": {}})
            for _ in range(2):
                client.ask("observation", observation())
            client.send("episode_end", {})
    assert [(asked.episode.episode, asked.call) for asked in policy.requests] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


def test_one_action_an_observation_comes_from_a_chunk_until_it_is_used_up() -> None:
    policy = EchoPolicy()
    with serving(policy, "vla_eval", whole_chunks=False) as served, served.connect() as connection:
        client = VlaEvalClient(connection)
        actions = [client.ask("observation", observation()).payload["actions"] for _ in range(4)]
        client.send("episode_start", {"task": {}})
        again = client.ask("observation", observation()).payload["actions"]
    assert [action.shape for action in actions] == [(7,)] * 4
    assert [(action[0], action[3]) for action in actions] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert (again[0], again[3]) == (0, 0)
    assert len(policy.requests) == 3


def test_one_action_an_observation_is_not_for_clients_that_count_calls() -> None:
    with serving(EchoPolicy(), "vla_eval", whole_chunks=False) as served, served.connect() as connection:
        whole = vla_eval.write_observation(request(), vla_eval.Form())
        answer = VlaEvalClient(connection).ask("observation", whole)
        with pytest.raises(ConnectionClosed):  # every observation would fail
            connection.recv(10)
        with pytest.raises(RemoteError, match=r"server.answer=action.*start it with server.answer=chunk"):
            remote(served.url, protocol="vla_eval")
    assert answer.type == "error"
    assert "serve policy=remote with server.answer=chunk" in answer.payload["error"]
    assert len([line for line in served.said if "got an error" in line]) == 1


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (observation(task_description="raise"), "ValueError: cannot do that"),
        (observation(images={}), "lacks 'agentview'"),
        (observation(images=[]), "images must be a map"),
        (observation(states=np.zeros(3)), "states must be 8 real numbers"),
    ],
)
def test_a_wrong_observation_is_an_error_and_the_client_goes_on(payload: Any, says: str) -> None:
    with serving(EchoPolicy(), "vla_eval") as served, served.connect() as connection:
        client = VlaEvalClient(connection)
        answer = client.ask("observation", payload)
        assert client.ask("observation", observation()).type == "action"
    assert answer.type == "error"
    assert says in answer.payload["error"]
    assert "\n" not in answer.payload["error"]
    assert len([line for line in served.said if "got an error" in line and says in line]) == 1


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("text", "a message must be binary"),
        (b"\xc1", "are not a message"),
        (b"\x80", "a message must have type, payload, seq and timestamp"),
    ],
)
def test_what_is_no_message_ends_its_client_alone(message: Any, says: str) -> None:
    with (
        serving(EchoPolicy(), "vla_eval") as served,
        served.connect() as other,
        served.connect() as connection,
    ):
        connection.send(message)
        answer = read_message(unpack(connection.recv(10)))
        with pytest.raises(ConnectionClosed):
            connection.recv(10)
        assert VlaEvalClient(other).ask("observation", observation()).type == "action"
    assert says in answer.payload["error"]


def test_a_client_that_sends_actions_or_reports_an_error_is_one_line() -> None:
    with serving(EchoPolicy(), "vla_eval") as served, served.connect() as connection:
        client = VlaEvalClient(connection)
        client.send("error", {"error": "the simulator\nfell"})
        assert client.ask("action", {}).payload["error"] == "FieldError: a client sends no actions"
    assert any("reports an error: 'the simulator\\nfell'" in line for line in served.said)
