"""What a client says in each protocol, over a `Link`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from policies.base import Request
from policies.remote import fields, openpi, vla_eval
from policies.remote.link import Link
from policies.remote.wire import pack_openpi, pack_vla_eval

# what our own server says of its weights, so that a run with them compares with a local one
WEIGHTS = ("weights_label", "weights_sha256", "norm_stats_sha256", "tokenizer_sha256")
HELLO = {"harness_version": fields.OWN_SERVER, "protocol_version": vla_eval.PROTOCOL_VERSION}


@dataclass(frozen=True)
class Greeting:
    """What a server says first.

    Attributes:
        metadata: all of it.
        cameras: images that it wants.
        image_size: that they are resized to; None: as they are rendered.
        replan_steps: actions of a chunk to execute, as it says, or as the protocol's own client does.
    """

    metadata: Mapping[str, Any]
    cameras: tuple[str, ...]
    image_size: int | None
    replan_steps: int


class Speaker(Protocol):
    """A client of one protocol; all methods raise RemoteError."""

    def greet(self) -> Greeting: ...

    def begin(self, request: Request) -> None:
        """Say that an episode begins with this request."""

    def ask(self, request: Request) -> Mapping[Any, Any]:
        """Send the observation; return the answer that holds the actions."""
        ...


class OpenpiSpeaker:
    """openpi's: the server speaks first, then question and answer; it knows of no episodes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._cameras: tuple[str, ...] = fields.CAMERAS
        self._image_size: int | None = openpi.IMAGE_SIZE

    def greet(self) -> Greeting:
        metadata = _as_map(self._link, self._link.receive(), "metadata")
        own = _own(self._link, metadata)
        if own is not None:
            self._cameras, self._image_size = own.cameras, own.image_size
        replan_steps = openpi.REPLAN_STEPS if own is None else own.replan_steps
        return Greeting(metadata, self._cameras, self._image_size, replan_steps)

    def begin(self, request: Request) -> None:
        pass

    def ask(self, request: Request) -> Mapping[Any, Any]:
        observation = openpi.write_observation(request, self._cameras, self._image_size)
        message = pack_openpi(observation)
        self._link.expect_nothing()  # answers have no number: one too many would shift all that follow
        self._link.send(message)
        return _as_map(self._link, self._link.receive(), "an answer")


class VlaEvalSpeaker:
    """vla-eval's: the client speaks first, and says when an episode begins and ends."""

    def __init__(self, link: Link, whole_turn: bool | None) -> None:
        self._link = link
        self._whole_turn = whole_turn
        self._form = vla_eval.Form()
        self._seq = 0
        self._in_episode = False

    def greet(self) -> Greeting:
        self._in_episode = False
        self._send("hello", HELLO)
        metadata = self._receive("hello")
        try:
            self._form = vla_eval.read_form(metadata, self._whole_turn)
        except fields.FieldError as error:
            raise self._link.fault(f"cannot be served: {error}") from error
        own = _own(self._link, metadata)
        replan_steps = vla_eval.REPLAN_STEPS if own is None else own.replan_steps
        return Greeting(metadata, self._form.cameras, None, replan_steps)

    def begin(self, request: Request) -> None:
        if self._in_episode:
            self._send("episode_end", {})
        key = request.episode
        task = {"name": request.observation.instruction, "suite": key.suite, "task_id": key.task_id}
        self._send("episode_start", {"task": {**task, "episode_idx": key.episode}})
        self._in_episode = True

    def ask(self, request: Request) -> Mapping[Any, Any]:
        self._send("observation", vla_eval.write_observation(request, self._form))
        return self._receive("action")

    def _send(self, kind: str, payload: Mapping[str, Any]) -> None:
        self._seq += 1
        self._link.send(pack_vla_eval(vla_eval.Message(kind, payload, self._seq).to_wire()))

    def _receive(self, kind: str) -> Mapping[Any, Any]:
        try:
            message = vla_eval.read_message(self._link.receive())
        except fields.FieldError as error:
            raise self._link.fault(f"sent something else: {error}; is policy.protocol right?") from error
        if message.type == "error":
            said = message.payload.get("error")
            raise self._link.told("reports an error", said if isinstance(said, str) else fields.spell(said))
        if (message.type, message.seq) != (kind, self._seq):
            raise self._link.fault(
                f"answers message {self._seq} with {message.type} {message.seq} instead of {kind}"
            )
        return message.payload


def make_speaker(protocol: str, link: Link, whole_turn: bool | None) -> Speaker:
    """Make the client of a protocol; see `RemotePolicy` for `whole_turn`."""
    return VlaEvalSpeaker(link, whole_turn) if protocol == vla_eval.NAME else OpenpiSpeaker(link)


def _as_map(link: Link, message: Any, name: str) -> Mapping[Any, Any]:
    try:
        return fields.read_map(message, name)
    except fields.FieldError as error:
        raise link.fault(f"sent something else: {error}; is policy.protocol right?") from error


@dataclass(frozen=True)
class _Own:
    cameras: tuple[str, ...]
    image_size: int | None
    replan_steps: int


def _own(link: Link, metadata: Mapping[Any, Any]) -> _Own | None:
    """What our own server wants and says; None for others', whose keys may mean anything."""
    if not fields.is_own(metadata):
        return None
    about = metadata.get("policy")
    said = about if isinstance(about, Mapping) else {}
    if wrong := [key for key in WEIGHTS if not isinstance(said.get(key), str | None)]:
        raise link.fault(f"says policy.{wrong[0]}={fields.spell(said[wrong[0]])}: not of our making")
    if metadata.get("answer") == fields.ACTION:
        raise link.fault(
            "answers with one action an observation (server.answer=action), which is for clients that do not "
            "count calls; start it with server.answer=chunk"
        )
    cameras, size, steps = (metadata.get(key) for key in ("cameras", "image_size", "replan_steps"))
    if (
        not isinstance(cameras, list)
        or not set(map(str, cameras)) <= set(fields.CAMERAS)
        or not (size is None or (type(size) is int and size in fields.SIDES))
        or not (type(steps) is int and steps >= 1)
    ):
        raise link.fault(
            f"says cameras={fields.spell(cameras)}, image_size={fields.spell(size)}, "
            f"replan_steps={fields.spell(steps)}: not of our making"
        )
    return _Own(tuple(cameras), size, steps)
