"""What goes over the wire in each protocol, held against recorded bytes of others' programs."""

import hashlib
import math

import numpy as np
import pytest

from policies.base import EpisodeKey, Request
from policies.remote import fields, openpi, vla_eval
from policies.remote.wire import unpack
from tests.policies.remote.recordings import messages, recording
from tests.policies.remote.servers import request


def test_a_resized_image_is_openpis_to_the_bit() -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    np.testing.assert_array_equal(openpi.resize_with_pad(image, 28), recording("openpi_server")["resized"])
    image = np.random.default_rng(4).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    resized = openpi.resize_with_pad(image, 224)
    assert hashlib.sha256(resized.tobytes()).hexdigest() == (  # of openpi_client.image_tools.resize_with_pad
        "e39e88cad936467556db692e0d36d1fef897af8d047e57bbb2137fc4201946d8"
    )


def test_no_size_leaves_an_image_as_it_was_rendered() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    assert openpi.resize_with_pad(image, None) is image


@pytest.mark.parametrize("i", range(3))
def test_what_openpis_client_sends_is_read(i: int) -> None:
    arrays = recording("openpi_client")
    received = openpi.read_observation(unpack(messages("openpi_client", "sent")[i]), fields.CAMERAS)
    np.testing.assert_array_equal(received.observation.images[fields.AGENTVIEW], arrays[f"image{i}"])
    np.testing.assert_array_equal(received.observation.images[fields.WRIST], arrays[f"wrist_image{i}"])
    np.testing.assert_array_equal(received.observation.state, arrays[f"state{i}"])
    assert received.observation.instruction == "pick up the black bowl"
    named = (EpisodeKey("libero_spatial", 3, 1, 7), 4) if i == 2 else (None, None)
    assert (received.episode, received.call) == named
    assert received.unread == ()


def test_our_observation_in_openpis_form_has_openpis_keys_sizes_and_dtypes() -> None:
    recorded = unpack(messages("openpi_client", "sent")[0])
    written = openpi.write_observation(request(3), fields.CAMERAS, 224)
    assert set(written) - set(recorded) == {"episode", "call"}
    for key, value in recorded.items():
        assert type(written[key]) is type(value)
    assert written["observation/image"].shape == (224, 224, 3)
    assert written["observation/image"].dtype == np.uint8
    assert written["observation/state"].dtype == recorded["observation/state"].dtype
    assert (written["episode"], written["call"]) == (
        {"suite": "libero_spatial", "task_id": 2, "episode": 0, "seed": 7},
        3,
    )


def test_what_vla_evals_client_sends_is_read() -> None:
    arrays = recording("vla_eval_client")
    kinds, seen = [], 0
    for image_format, message in zip(arrays["formats"], messages("vla_eval_client", "sent"), strict=True):
        incoming = vla_eval.read_message(unpack(message))
        kinds.append(incoming.type)
        if incoming.type != "observation":
            continue
        received = vla_eval.read_observation(incoming.payload, fields.CAMERAS)
        np.testing.assert_array_equal(received.observation.state, arrays[f"state{seen}"])
        for camera, name in vla_eval.IMAGES.items():
            image, sent = received.observation.images[camera].astype(int), arrays[f"{name}{seen}"]
            # of noise that JPEG has been at; another image would be 85 levels away
            assert np.abs(image - sent).mean() <= (60 if image_format == "jpeg" else 0)
        seen += 1
    assert kinds == ["hello", "episode_start", "observation", "observation", "episode_end"] * 3


def test_our_observation_in_vla_evals_form_has_its_keys() -> None:
    [recorded] = [
        incoming.payload
        for message in messages("vla_eval_client", "sent")[2:3]
        for incoming in [vla_eval.read_message(unpack(message))]
    ]
    written = vla_eval.write_observation(request(), vla_eval.Form())
    assert set(written) - set(recorded) == {"episode", "call"}
    assert set(written["images"]) == set(recorded["images"])
    assert written["states"].shape == recorded["states"].shape


def test_a_server_gets_what_its_hello_asks_for() -> None:
    only = vla_eval.read_form({"observation_params": {"send_wrist_image": False, "send_state": False}})
    written = vla_eval.write_observation(request(), only)
    assert list(written["images"]) == ["agentview"]
    assert "states" not in written
    assert vla_eval.read_form({}) == vla_eval.Form()
    assert vla_eval.read_form({}, whole_turn=True).whole_turn
    assert vla_eval.read_form({"observation_params": vla_eval.OWN_PARAMS}) == vla_eval.Form(whole_turn=True)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"absolute_action": True}, "actions here are relative"),
        ({"camera_size": True}, "not known"),
        ({"send_state": 1}, "true or false"),
        ([1], "must be a map"),
    ],
)
def test_what_libero_cannot_give_is_refused(asked: object, says: str) -> None:
    with pytest.raises(fields.FieldError, match=says):
        vla_eval.read_form({"observation_params": asked})


def test_more_than_half_a_turn_is_turned_the_other_way_for_vla_eval() -> None:
    state = np.zeros(8)
    state[3:6] = np.array([0.0, 0.6, 0.8]) * 4.0
    turned = vla_eval.shorten_turn(state)
    np.testing.assert_allclose(turned[3:6], np.array([0.0, 0.6, 0.8]) * (4.0 - 2 * math.pi), atol=1e-12)
    state[3:6] = np.array([0.0, 0.6, 0.8]) * 3.0
    np.testing.assert_array_equal(vla_eval.shorten_turn(state), state)


def observation(**changes: object) -> dict[str, object]:
    written = openpi.write_observation(request(), fields.CAMERAS, None) | changes
    return {key: value for key, value in written.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": None}, "lacks 'prompt'"),
        ({"prompt": b"pick"}, "prompt must be a text"),
        ({"prompt": "a" * 5000}, "at most 4096"),
        ({"observation/image": None}, "lacks 'observation/image'"),
        ({"observation/image": np.zeros((16, 16), np.uint8)}, "got uint8 .16, 16."),
        ({"observation/image": np.zeros((16, 16, 3))}, "got float64"),
        ({"observation/wrist_image": np.zeros((0, 16, 3), np.uint8)}, "got uint8 .0, 16, 3."),
        ({"observation/wrist_image": np.zeros((1, 5000, 3), np.uint8)}, "got uint8 .1, 5000, 3."),
        ({"observation/state": np.zeros(7)}, "8 real numbers, got float64 .7,."),
        ({"observation/state": [0.0] * 8}, "8 real numbers"),
        ({"observation/state": np.full(8, np.nan)}, "must be finite"),
        ({"episode": {"suite": "libero_spatial"}}, "must have suite, task_id, episode, seed"),
        ({"episode": {"suite": 1, "task_id": 0, "episode": 0, "seed": 0}}, "episode.suite must be a text"),
        ({"episode": {"suite": "x", "task_id": -1, "episode": 0, "seed": 0}}, "episode.task_id must be"),
        ({"episode": {"suite": "x", "task_id": 0, "episode": 0, "seed": True}}, "episode.seed must be"),
        ({"episode": None}, "lacks 'episode'"),
        ({"call": None}, "lacks 'call'"),
        ({"call": 1.0}, "call must be an integer"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(fields.FieldError, match=says):
        openpi.read_observation(observation(**changes), fields.CAMERAS)


@pytest.mark.parametrize("message", [None, 3, [1], "text", np.zeros(3)])
def test_an_observation_is_a_map(message: object) -> None:
    with pytest.raises(fields.FieldError, match="must be a map"):
        openpi.read_observation(message, fields.CAMERAS)
    with pytest.raises(fields.FieldError, match="must be a map"):
        vla_eval.read_message(message)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": "goodbye"}, "type must be one of"),
        ({"type": np.zeros(3)}, "type must be one of"),
        ({"seq": "1"}, "seq must be an integer"),
        ({"payload": []}, "payload must be a map"),
    ],
)
def test_a_wrong_message_is_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(fields.FieldError, match=says):
        vla_eval.read_message(vla_eval.Message("hello", {}, 1).to_wire() | changes)


def test_keys_that_nobody_reads_are_listed() -> None:
    received = openpi.read_observation(observation(depth=1), fields.CAMERAS)
    assert received.unread == ("'depth'",)


def test_the_episode_and_the_call_are_those_of_the_request() -> None:
    key = EpisodeKey("libero_10", 4, 2, 9)
    asked = Request(request().observation, key, 6)
    received = openpi.read_observation(openpi.write_observation(asked, fields.CAMERAS, None), fields.CAMERAS)
    assert (received.episode, received.call) == (key, 6)
