"""RemotePolicy against servers that behave as recorded, and against servers that do not."""

import logging
import re
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection

from policies.remote.link import Link, RemoteError
from policies.remote.policy import plain
from policies.remote.vla_eval import Message, read_message
from policies.remote.wire import pack_openpi, pack_vla_eval, unpack
from tests.policies.remote.recordings import messages, recording
from tests.policies.remote.servers import ACTIONS, Handler, answering, remote, request, serving


def fails(handler: Handler, **options: Any) -> str:
    """What the first inference against a server raises, which is one line and names the url."""
    with serving(handler) as url:
        policy = remote(url, **options)
        with pytest.raises(RemoteError) as raised:
            policy.infer([request()])
    line = str(raised.value)
    assert line.startswith(f"policy.url={url} ")
    assert "\n" not in line
    return line


def replay(frames: list[bytes]) -> Handler:
    """Send recorded messages, one for each message that wants an answer; the answers get its `seq`."""

    def handle(connection: ServerConnection) -> None:
        left = iter(frames)
        for message in connection:
            asked = read_message(unpack(message))
            if asked.type in ("hello", "observation"):
                recorded = read_message(unpack(next(left)))
                answer = Message(recorded.type, recorded.payload, asked.seq)
                connection.send(pack_vla_eval(answer.to_wire()))

    return handle


def test_an_answer_of_openpis_server_is_a_chunk_with_the_servers_time() -> None:
    frames = recording("openpi_server")

    def handle(connection: ServerConnection) -> None:
        connection.send(frames["metadata2"].tobytes())
        connection.recv()
        time.sleep(0.06)  # the recorded server took 43 ms
        connection.send(frames["answer"].tobytes())

    with serving(handle) as url:
        policy = remote(url)
        start_s = time.perf_counter()
        [chunk] = policy.infer([request()])
        total_ms = (time.perf_counter() - start_s) * 1e3
        about = policy.provenance()
    np.testing.assert_array_equal(chunk.actions_HJ, frames["actions"])
    assert list(chunk.stage_ms) == ["server", "way"]
    assert chunk.stage_ms["server"] == 43.25
    assert 16.75 <= chunk.stage_ms["way"] <= total_ms - 43.25
    assert (chunk.backends, policy.engagement()) == ({}, {})
    assert policy.cameras == ("agentview_image", "robot0_eye_in_hand_image")
    assert (about["server"], about["image_size"], about["replan_steps"]) == (
        {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]},
        224,
        5,
    )
    assert (about["label"], about["checkpoint"], about["url"]) == ("weights of a test",) * 2 + (url,)
    assert "weights_sha256" not in about


def test_chunks_of_vla_evals_server_are_read_and_its_error_is_one_line() -> None:
    frames = messages("vla_eval_server", "got")
    with serving(replay(frames[:5])) as url:
        policy = remote(url, protocol="vla_eval", replan_steps=5)
        for call in range(3):
            [chunk] = policy.infer([request(call)])
            recorded = read_message(unpack(frames[1 + call])).payload["actions"]
            np.testing.assert_array_equal(chunk.actions_HJ, recorded)
            assert chunk.actions_HJ.shape == (10, 7)
        with pytest.raises(
            RemoteError,
            match=r"reports an error: observation_failed: KeyError: 'proprio'; its own log has more$",
        ):
            policy.infer([request(3)])


def test_a_vla_eval_server_that_gives_one_action_is_asked_before_every_step() -> None:
    with serving(replay(messages("vla_eval_server", "got")[5:])) as url:
        policy = remote(url, protocol="vla_eval")
        [chunk] = policy.infer([request()])
    assert policy.replan_steps == 1
    assert chunk.actions_HJ.shape == (1, 7)


def test_a_vla_eval_server_is_told_when_episodes_begin_and_end() -> None:
    seen = []

    def handle(connection: ServerConnection) -> None:
        for message in connection:
            asked = read_message(unpack(message))
            seen.append((asked.type, asked.payload.get("task", {}).get("episode_idx")))
            if asked.type in ("hello", "observation"):
                kind = "hello" if asked.type == "hello" else "action"
                answer = Message(kind, {"actions": ACTIONS}, asked.seq)
                connection.send(pack_vla_eval(answer.to_wire()))

    with serving(handle) as url:
        policy = remote(url, protocol="vla_eval")
        for episode, call in ((0, 0), (0, 1), (1, 0)):
            policy.infer([request(call, episode)])
    assert seen == [
        ("hello", None),
        ("episode_start", 0),
        ("observation", None),
        ("observation", None),
        ("episode_end", None),
        ("episode_start", 1),
        ("observation", None),
    ]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"actions": ACTIONS[:, :6]}, r"sent actions \(10, 6\), LIBERO takes \(horizon, 7\)"),
        ({"actions": np.zeros((10, 32))}, r"sent actions \(10, 32\)"),
        ({"actions": np.zeros((1, 10, 7))}, r"sent actions \(1, 10, 7\)"),
        ({"actions": ACTIONS[:3]}, r"sent 3 actions.*set policy.replan_steps=3"),
        ({"actions": np.full((10, 7), np.nan)}, "sent 70 actions that are not finite"),
        ({"actions": np.full((10, 7), "x")}, "sent no actions, but <U1"),
        ({"actions": [["x"]]}, "sent actions that are not numbers"),
        ({"actions": [[1.0], [1.0, 2.0]]}, "sent actions that are not numbers"),
        ({"state": 1}, "sent no actions, but None"),
        ([1, 2], "sent something else: an answer must be a map"),
        (b"\x93", "sent something else: .*is policy.protocol right"),
        (pack_vla_eval(Message("action", {}, 1).to_wire()), "sent no actions"),
    ],
)
def test_an_answer_that_is_no_chunk_is_one_line(answer: Any, says: str) -> None:
    assert re.search(says, fails(answering(answer)))


def test_a_traceback_is_one_line_and_the_log_has_all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    text = "Traceback (most recent call last):\n  File ...\nValueError: no such camera\n"
    with caplog.at_level(logging.ERROR):
        line = fails(answering(text))
    assert line.endswith("sent text instead of actions: ValueError: no such camera; its own log has more")
    assert text in caplog.text


def test_a_late_answer_is_an_error_and_is_not_taken_for_the_next_ones() -> None:
    asked = []

    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({}))
        for _ in connection:
            asked.append(None)
            late = len(asked) == 1
            time.sleep(0.6 if late else 0)
            connection.send(pack_openpi({"actions": ACTIONS * (0 if late else 1)}))

    with serving(handle) as url:
        policy = remote(url, timeout_s=0.3)
        with pytest.raises(RemoteError, match=r"did not answer in policy.timeout_s=0.3 s"):
            policy.infer([request()])
        with pytest.raises(RemoteError, match=r"the connection on which .*episode0.* began is lost"):
            policy.infer([request(1)])
        [chunk] = policy.infer([request(0, episode=1)])
    np.testing.assert_array_equal(chunk.actions_HJ, ACTIONS)


def test_a_server_that_dies_takes_its_episode_and_the_next_one_connects_again() -> None:
    connections = []

    def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(pack_openpi({}))
        for i, _ in enumerate(connection):
            if len(connections) == 1 and i == 1:
                connection.socket.shutdown(socket.SHUT_RDWR)
            connection.send(pack_openpi({"actions": ACTIONS}))

    with serving(handle) as url:
        policy = remote(url)
        policy.infer([request(0)])
        with pytest.raises(RemoteError, match=r"closed the connection before it answered \(no goodbye\)"):
            policy.infer([request(1)])
        with pytest.raises(RemoteError, match=r"is lost; the next episode connects again"):
            policy.infer([request(2)])
        assert len(connections) == 1
        policy.infer([request(0, episode=1)])
        policy.infer([request(1, episode=1)])
        with pytest.raises(RemoteError, match=r"episode0.* is lost"):
            policy.infer([request(3, episode=0)])
    assert len(connections) == 2


def test_a_server_that_was_started_again_between_episodes_costs_none() -> None:
    connections = []

    def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(pack_openpi({}))
        connection.recv()
        connection.send(pack_openpi({"actions": ACTIONS}))

    with serving(handle) as url:
        policy = remote(url)
        for episode in range(3):
            policy.infer([request(0, episode)])
            while policy._link.is_open:
                time.sleep(0.01)
    assert len(connections) == 3


def test_a_goodbye_in_an_episode_is_told_with_its_reason() -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({}))
        connection.recv()
        connection.close(1011, "out of memory")

    assert "closed the connection before it answered (1011 out of memory)" in fails(handle)


def test_a_frame_of_a_gigabyte_is_refused_before_it_is_read() -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({}))
        connection.recv()
        connection.socket.sendall(b"\x82\x7f" + (2**30).to_bytes(8, "big"))  # the header of a binary frame
        time.sleep(1)

    start_s = time.monotonic()
    line = fails(handle, timeout_s=30.0, max_message_mb=4)
    assert "sent a message of more than policy.max_message_mb=4 MiB" in line
    assert time.monotonic() - start_s < 10


def test_a_server_that_reads_nothing_is_an_error_in_time() -> None:
    stuck = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []
    thread = threading.Thread(target=lambda: accepted.append(_shake_hands(stuck)))
    thread.start()
    link = Link(f"ws://127.0.0.1:{stuck.getsockname()[1]}", timeout_s=0.5, max_bytes=2**20)
    link.open(5.0)
    thread.join()
    start_s = time.monotonic()
    with pytest.raises(RemoteError, match=r"did not take a message"):
        link.send(bytes(2**26))  # more than the system buffers
    assert time.monotonic() - start_s < 5
    accepted[0].close()
    stuck.close()


def _shake_hands(listening: socket.socket) -> socket.socket:
    """Accept one websocket, and never read from it again."""
    accepted, _ = listening.accept()
    protocol = ServerProtocol()
    while not (events := protocol.events_received()):
        protocol.receive_data(accepted.recv(4096))
    protocol.send_response(protocol.accept(events[0]))
    accepted.sendall(b"".join(protocol.data_to_send()))
    return accepted


def test_to_connect_again_is_no_latency() -> None:
    """Of the call's time, what went by before the observation was sent is told apart."""
    greetings = iter([0.0, 0.3])

    def handle(connection: ServerConnection) -> None:
        time.sleep(next(greetings))
        connection.send(pack_openpi({}))
        connection.recv()
        connection.send(pack_openpi({"actions": ACTIONS, "server_timing": {"infer_ms": 0.01}}))

    with serving(handle) as url:
        policy = remote(url)
        [first] = policy.infer([request(0, episode=0)])
        while policy._link.is_open:
            time.sleep(0.01)
        [second] = policy.infer([request(0, episode=1)])
    assert first.setup_ms < 100
    assert second.setup_ms >= 300
    assert sum(second.stage_ms.values()) < 300


@pytest.mark.parametrize("protocol", ["openpi", "vla_eval"])
def test_a_servers_traceback_is_told_by_its_last_line_and_logged_whole(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No terminal obeys what it holds."""
    frames = "".join(f'  File "policy.py", line {i}, in infer\n' for i in range(100))
    trace = f"Traceback (most recent call last):\n{frames}\x1b]0;mine\x07\nKeyError: 'proprio\x1b[2J'\n"

    def of_vla_eval(connection: ServerConnection) -> None:
        for message in connection:
            asked = read_message(unpack(message))
            if asked.type in ("hello", "observation"):
                kind, payload = ("hello", {}) if asked.type == "hello" else ("error", {"error": trace})
                connection.send(pack_vla_eval(Message(kind, payload, asked.seq).to_wire()))

    line = fails(answering(trace) if protocol == "openpi" else of_vla_eval, protocol=protocol)
    assert line.endswith(": KeyError: 'proprio\\x1b[2J'; its own log has more")
    assert "line 99, in infer" in caplog.text
    assert "\x1b" not in line + caplog.text


@pytest.mark.parametrize("params", [np.zeros(3), [1], "text", 0])
def test_observation_params_that_are_no_map_are_one_line(params: Any) -> None:
    def handle(connection: ServerConnection) -> None:
        asked = read_message(unpack(connection.recv()))
        hello = {"observation_params": params}
        connection.send(pack_vla_eval(Message("hello", hello, asked.seq).to_wire()))

    with (
        serving(handle) as url,
        pytest.raises(RemoteError, match="cannot be served: observation_params must be a map, got"),
    ):
        remote(url, protocol="vla_eval")


@pytest.mark.parametrize("key", ["weights_sha256", "weights_label", "tokenizer_sha256"])
def test_weights_of_our_own_server_are_named_in_text(key: str) -> None:
    """Records hold them, and no reader takes anything else."""
    own = {"server": "libero-vla-eval", "cameras": [], "image_size": None, "replan_steps": 5}
    metadata = {**own, "policy": {key: [3]}}
    with (
        serving(answering({"actions": ACTIONS}, metadata)) as url,
        pytest.raises(RemoteError, match=rf"says policy.{key}=\[3\]: not of our making"),
    ):
        remote(url)


def test_a_server_that_comes_back_as_another_is_refused() -> None:
    greetings = iter(
        [{"weights": "a", "client": 1}, {"weights": "a", "client": 2}, {"weights": "b", "client": 3}]
    )

    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi(next(greetings)))
        connection.recv()
        connection.send(pack_openpi({"actions": ACTIONS}))
        connection.recv()

    with serving(handle) as url:
        policy = remote(url)
        for episode in range(2):
            policy.infer([request(0, episode)])
            with pytest.raises(RemoteError, match=r"closed the connection"):
                policy.infer([request(1, episode)])
        with pytest.raises(RemoteError, match=r"serves something else than when the run began .weights."):
            policy.infer([request(0, 2)])


def test_a_time_of_the_server_that_cannot_be_true_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    with serving(answering({"actions": ACTIONS, "server_timing": {"infer_ms": 1e6}})) as url:
        policy = remote(url)
        for call in range(2):
            [chunk] = policy.infer([request(call)])
            assert chunk.stage_ms == {}
    assert caplog.text.count("not split") == 1


@pytest.mark.parametrize("timing", [{}, {"server_timing": {"infer_ms": "1"}}, {"policy_timing": 3}])
def test_a_server_that_says_no_time_has_no_split(timing: dict[str, Any]) -> None:
    with serving(answering({"actions": ACTIONS, **timing})) as url:
        [chunk] = remote(url).infer([request()])
    assert chunk.stage_ms == {}


def test_metadata_becomes_json_whatever_it_holds() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    metadata = {
        b"k": np.arange(2),
        "f": np.float32(0.5),
        "n": float("nan"),
        "big": np.zeros(1000),
        "deep": deep,
    }
    known = plain(metadata)
    assert known["b'k'"] == [0, 1]
    assert known["f"] == 0.5
    assert known["n"] == "nan"
    assert known["big"] == "float64 (1000,)"
    assert "..." in str(known["deep"])
