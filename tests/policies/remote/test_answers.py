"""What a server may send as actions and metadata: numbers, which are checked as the numbers that are used."""

from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.sync.server import ServerConnection

from policies.remote import fields, openpi
from policies.remote.link import MAX_LINE, RemoteError
from policies.remote.policy import plain
from policies.remote.wire import WireError, pack_openpi, unpack
from tests.policies.remote.servers import ACTIONS, answering, remote, request, serving

HUGE = np.longdouble("1e4000")  # finite, and too large for a float64
LONG = 500_000


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (np.full((10, 7), HUGE), "sent 70 actions that are not finite"),
        ([np.full(7, HUGE)] * 10, "sent 70 actions that are not finite"),
        ([["1"] * 7] * 10, "sent actions that are not numbers: [['1', '1'"),
        ([np.full(7, "1")] * 10, "sent actions that are not numbers: [<U1 (7,)"),
        ([[True] * 7] * 10, "sent actions that are not numbers: [[True"),
        ([["x" * LONG]], "sent actions that are not numbers: [['xxx"),
        ([["\x1b[2J\nfoo"]], "sent actions that are not numbers: [['\\x1b[2J\\nfoo']]"),
        ([[1.0], [1.0, 2.0]], "sent actions that are not numbers: setting an array element"),
    ],
)
def test_actions_that_are_no_finite_numbers_are_a_short_line(actions: Any, says: str) -> None:
    with serving(answering({"actions": actions})) as url:
        policy = remote(url)
        with pytest.raises(RemoteError) as raised:
            policy.infer([request()])
    line = str(raised.value)
    assert line.startswith(f"policy.url={url} {says}")
    assert line.isprintable()
    assert len(line) < MAX_LINE + 100


@pytest.mark.parametrize("dtype", [np.longdouble, np.float16, np.int64, np.uint8])
def test_actions_of_any_dtype_of_numbers_are_taken(dtype: Any) -> None:
    with serving(answering({"actions": np.ones((10, 7), dtype)})) as url:
        [chunk] = remote(url).infer([request()])
    assert chunk.actions_HJ.dtype == np.float64
    assert (chunk.actions_HJ == 1).all()


def test_a_state_is_checked_as_the_numbers_that_the_policy_sees() -> None:
    written = openpi.write_observation(request(), fields.CAMERAS, None)
    huge = unpack(pack_openpi({**written, openpi.STATE: np.full(8, HUGE)}))
    with pytest.raises(fields.FieldError, match=r"observation/state must be finite, got \[inf"):
        openpi.read_observation(huge, fields.CAMERAS)


@pytest.mark.parametrize("points", [b"\xff\xff\xff\xff", b"\x00\xd8\x00\x00", b"\xff\xdf\x00\x00"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_text_in_an_array_that_is_no_unicode_is_refused(points: bytes, order: str) -> None:
    data = points if order == "<" else points[::-1]
    fields_of_array = {b"__ndarray__": True, b"data": data, b"dtype": f"{order}U1", b"shape": [1]}
    with pytest.raises(WireError, match="a text in an array must be Unicode"):
        unpack(msgpack.packb(fields_of_array))
    read = unpack(pack_openpi(np.array(["a\ue000\U0010ffff"]).astype(f"{order}U3")))
    assert plain(read) == ["a\ue000\U0010ffff"]


def test_long_doubles_in_metadata_become_jsons_numbers() -> None:
    known = plain({"a": np.longdouble(0.5), "b": np.full(2, np.longdouble(0.25)), "c": HUGE})
    assert known == {"a": 0.5, "b": [0.25, 0.25], "c": "inf"}
    assert type(known["a"]) is float


def test_what_our_own_server_says_of_itself_is_repeated_in_few_words() -> None:
    own = {"server": fields.OWN_SERVER, "policy": {}, "cameras": ["\x1b" * LONG], "image_size": "x" * LONG}
    with serving(answering({"actions": ACTIONS}, own)) as url, pytest.raises(RemoteError) as raised:
        remote(url)
    assert "not of our making" in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_metadata_that_changed_is_named_in_few_words() -> None:
    greetings = iter([{}, {f"\x1b{i}" * 1000: i for i in range(9)}])

    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi(next(greetings)))
        connection.recv()

    with serving(handle) as url:
        policy = remote(url)
        policy.close()
        with pytest.raises(RemoteError, match=r"serves something else than when the run began") as raised:
            policy.infer([request()])
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
