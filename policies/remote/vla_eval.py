"""vla-eval's protocol: numbered messages with a type; hello, episode_start, observation, action, episode_end.

Names are those of vla-eval 0.8.0 (vla_eval/protocol/messages.py, connection.py, benchmarks/libero).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.base import Observation, Request
from policies.remote import fields

NAME = "vla_eval"
PROTOCOL_VERSION = 1
TYPES = ("hello", "episode_start", "observation", "action", "episode_end", "error")
IMAGES = {fields.AGENTVIEW: "agentview", fields.WRIST: "wrist"}
STATE, PROMPT = "states", "task_description"
REPLAN_STEPS = 1  # its LIBERO benchmark sends an observation before every control step
# what a hello may ask of LIBERO's observations (`LIBEROBenchmark`)
WRIST_PARAM, STATE_PARAM = "send_wrist_image", "send_state"
ANGLE_PARAM, ABSOLUTE_PARAM = "quat_no_antipodal", "absolute_action"
PARAMS = (WRIST_PARAM, STATE_PARAM, ANGLE_PARAM, ABSOLUTE_PARAM)
# its benchmark sends the controller's state too, which pi0.5 does not read
KEYS = ("images", STATE, "controller_states", PROMPT, fields.EPISODE, fields.CALL)


@dataclass(frozen=True)
class Message:
    """One message; `seq` counts a client's messages, and an answer repeats it."""

    type: str
    payload: Mapping[Any, Any]
    seq: int

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.type, "payload": self.payload, "seq": self.seq, "timestamp": time.time()}


@dataclass(frozen=True)
class Form:
    """What a server wants of LIBERO's observations.

    Attributes:
        wrist, state: whether it wants the wrist camera and the robot's state.
        whole_turn: whether the axis-angle's angle goes up to 2 pi, as robosuite and openpi have it; otherwise
            up to pi, which is vla-eval's default.
    """

    wrist: bool = True
    state: bool = True
    whole_turn: bool = False

    @property
    def cameras(self) -> tuple[str, ...]:
        return fields.CAMERAS if self.wrist else (fields.AGENTVIEW,)


OWN_PARAMS = {WRIST_PARAM: True, STATE_PARAM: True, ANGLE_PARAM: True}
"""What our own server's hello asks for: what a local policy sees."""


def read_message(message: Any) -> Message:
    """Read one message; FieldError for a wrong type, payload or number."""
    message = fields.read_map(message, "a message")
    missing = [key for key in ("type", "payload", "seq", "timestamp") if key not in message]
    if missing:
        raise fields.FieldError(f"a message must have type, payload, seq and timestamp, lacks {missing}")
    if not isinstance(message["type"], str) or message["type"] not in TYPES:
        raise fields.FieldError(
            f"type must be one of {', '.join(TYPES)}, got {fields.spell(message['type'])}"
        )
    if type(message["seq"]) is not int:
        raise fields.FieldError(f"seq must be an integer, got {fields.spell(message['seq'])}")
    return Message(message["type"], fields.read_map(message["payload"], "payload"), message["seq"])


def read_form(hello: Mapping[Any, Any], whole_turn: bool | None = None) -> Form:
    """Read what a server's hello asks for; `whole_turn`, where given, wins over it.

    Raises FieldError for what LIBERO's observations cannot give.
    """
    params = hello.get("observation_params")
    asked = fields.read_map({} if params is None else params, "observation_params")
    for key, value in asked.items():
        if key not in PARAMS:
            raise fields.FieldError(f"observation_params asks for {fields.spell(key)}, which is not known")
        if not isinstance(value, bool):
            raise fields.FieldError(
                f"observation_params {key} must be true or false, got {fields.spell(value)}"
            )
    if asked.get(ABSOLUTE_PARAM):
        raise fields.FieldError(f"observation_params asks for {ABSOLUTE_PARAM}; actions here are relative")
    turn = asked.get(ANGLE_PARAM, False) if whole_turn is None else whole_turn
    return Form(asked.get(WRIST_PARAM, True), asked.get(STATE_PARAM, True), turn)


def write_observation(request: Request, form: Form) -> dict[str, Any]:
    """Word a request, images as they were rendered."""
    observation = request.observation
    images = {IMAGES[name]: observation.images[name] for name in form.cameras}
    state = observation.state if form.whole_turn else shorten_turn(observation.state)
    return {
        "images": images,
        PROMPT: observation.instruction,
        **({STATE: state} if form.state else {}),
        **fields.identity(request),
    }


def read_observation(payload: Mapping[Any, Any], cameras: Sequence[str]) -> fields.Received:
    """Read what a client sent; FieldError for what is missing or wrong."""
    images = fields.read_map(fields.require(payload, "images"), "images")
    observation = Observation(
        {name: fields.read_image(images, IMAGES[name]) for name in cameras},
        fields.read_state(payload, STATE),
        fields.read_text(payload, PROMPT),
    )
    unread = fields.unread(payload, KEYS) + fields.unread(images, tuple(IMAGES.values()))
    return fields.Received(observation, *fields.read_identity(payload), unread)


def shorten_turn(state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn the other way round where the axis-angle in `state` (8,) is more than half a turn."""
    turn = state[3:6]
    angle = float(np.linalg.norm(turn))
    if angle <= math.pi:
        return state
    shortened = state.copy()
    shortened[3:6] = turn * (1 - 2 * math.pi / angle)
    return shortened
