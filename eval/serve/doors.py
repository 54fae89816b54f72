"""The server's side of each protocol: bytes in, bytes out, for one client.

H horizon, J 7 robot action dims.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from eval.records import provenance
from eval.records.resume import portable
from eval.serve.inference import PolicyGone, Timed
from eval.serve.session import CountsItself, Session, refuse_call
from policies.base import Policy, Request
from policies.remote import fields, openpi, vla_eval
from policies.remote.link import one_line
from policies.remote.wire import WireError, pack_openpi, pack_vla_eval, unpack
from policies.text import shorten

SPECS = {  # vla_eval/specs.py: of the answer, and of the observation
    "action_spec": {
        "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
        "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
        "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1, 1]},
    },
    "observation_spec": {
        "agentview": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"},
        "wrist": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"},
        "state": {"name": "state", "dims": 8, "format": "eef_pos3_axisangle3_gripper2"},
        "language": {"name": "language", "dims": 0, "format": "language"},
    },
}


class ClientFault(RuntimeError):
    """A client's message that ends its connection; the message says why, in one line."""


@dataclass(frozen=True)
class Client:
    """A connection with what the server does for it.

    Attributes:
        read: unpack a message beside the others' service; WireError.
        send: send one message in time, or raise `ClientFault`.
        infer: ask the policy.
        note: print a line about this client.
    """

    session: Session
    messages: AsyncIterator[str | bytes]
    read: Callable[[str | bytes], Awaitable[Any]]
    send: Callable[[bytes | str], Awaitable[None]]
    infer: Callable[[Request], Awaitable[Timed]]
    note: Callable[[str], None]

    async def ask(self, received: fields.Received) -> Timed:
        """Get the chunk for an observation."""
        session = self.session
        new = [key for key in received.unread if key not in session.noted]
        if new and len(session.noted) < fields.MAX_UNREAD:
            session.noted.update(new)
            self.note(f"sends {shorten(new)}, which is not read")
        timed = await self.infer(session.request(received))
        session.infer_ms.append(timed.infer_ms)
        return timed

    async def answer(self, message: bytes, received_s: float) -> None:
        """Send an answer, and time it from the message that it answers."""
        await self.send(message)
        self.session.total_ms.append((time.perf_counter() - received_s) * 1e3)


@dataclass(frozen=True)
class OpenpiDoor:
    """openpi's: greet, then answer each observation by a chunk; an error is text, and the end."""

    metadata: dict[str, Any]
    cameras: tuple[str, ...]

    async def serve(self, client: Client) -> None:
        noise = dict(vars(client.session.noise_key))
        await client.send(pack_openpi({**self.metadata, "client": {"noise": noise}}))
        async for message in client.messages:
            received_s = time.perf_counter()
            try:
                received = openpi.read_observation(await client.read(message), self.cameras)
                timed = await client.ask(received)
            except PolicyGone:
                raise
            except Exception as error:
                await client.send(word(error))
                raise ClientFault(f"got an error: {word(error)}") from error
            chunk = timed.chunk
            answer = openpi.write_answer(chunk.actions_HJ, timed.infer_ms, chunk.stage_ms)
            await client.answer(pack_openpi(answer), received_s)


@dataclass(frozen=True)
class VlaEvalDoor:
    """vla-eval's: answer each message that wants an answer; an error in an observation is a message too.

    Attributes:
        whole_chunks: whether an answer is a chunk (H, J), or the next action of one (J,).
    """

    metadata: dict[str, Any]
    cameras: tuple[str, ...]
    whole_chunks: bool = True

    async def serve(self, client: Client) -> None:
        async for message in client.messages:
            received_s = time.perf_counter()
            try:
                incoming = vla_eval.read_message(await client.read(message))
            except (WireError, fields.FieldError) as error:
                await self._send_error(client, error, 0)
                raise ClientFault(f"got an error: {word(error)}") from error
            if incoming.type == "hello":
                await client.send(_pack("hello", self._hello(client.session), incoming.seq))
            elif incoming.type == "episode_start":
                client.session.begin_episode()
            elif incoming.type == "observation":
                await self._observation(client, incoming, received_s)
            elif incoming.type == "error":
                client.note(f"reports an error: {fields.spell(incoming.payload.get('error'))}")
            elif incoming.type == "action":
                await self._send_error(client, fields.FieldError("a client sends no actions"), incoming.seq)
                raise ClientFault("sent an action")

    async def _observation(self, client: Client, incoming: vla_eval.Message, received_s: float) -> None:
        try:
            received = vla_eval.read_observation(incoming.payload, self.cameras)
            if self.whole_chunks:
                payload = _whole(await client.ask(received))
            else:
                refuse_call(received)
                queue = client.session.queue
                if not queue:
                    queue.refill((await client.ask(received)).chunk)
                payload = {"actions": queue.pop()}
        except PolicyGone:
            raise
        except CountsItself as error:
            await self._send_error(client, error, incoming.seq)
            raise ClientFault(f"got an error: {word(error)}") from error
        except Exception as error:  # noqa: BLE001  the client is told, and goes on
            await self._send_error(client, error, incoming.seq)
            client.note(f"got an error: {word(error)}")
            return
        await client.answer(_pack("action", payload, incoming.seq), received_s)

    def _hello(self, session: Session) -> dict[str, Any]:
        return {
            "harness_version": f"{fields.OWN_SERVER} {self.metadata['version']}",
            "protocol_version": vla_eval.PROTOCOL_VERSION,
            "model_server": self.metadata["policy"]["policy"],
            "capabilities": {},
            "observation_params": vla_eval.OWN_PARAMS,
            **SPECS,
            **self.metadata,
            "client": {"noise": dict(vars(session.noise_key))},
        }

    async def _send_error(self, client: Client, error: Exception, seq: int) -> None:
        await client.send(_pack("error", {"error": word(error)}, seq))


Door = OpenpiDoor | VlaEvalDoor


def make_door(policy: Policy, protocol: str, answer: str) -> Door:
    """Make the door of a protocol for a policy; its metadata says whose server it is and what it serves."""
    chunks = answer == fields.CHUNK
    metadata = {
        "server": fields.OWN_SERVER,
        "version": provenance.installed_version("libero-vla-eval"),
        "policy": portable({"policy": policy.name, **policy.provenance()}),
        "cameras": list(policy.cameras),
        "image_size": None,  # as they are rendered: the policy resizes them itself
        "replan_steps": policy.replan_steps if chunks else 1,
        "answer": answer,
    }
    if protocol == openpi.NAME:
        return OpenpiDoor(metadata, policy.cameras)
    return VlaEvalDoor(metadata, policy.cameras, chunks)


def read(message: str | bytes) -> Any:
    """Unpack a message; WireError for text, and for what is none."""
    if isinstance(message, str):
        raise WireError(f"a message must be binary, got the text {fields.spell(message)}")
    return unpack(message)


def word(error: Exception) -> str:
    """Word an error on a short line, for the client and for the console."""
    return one_line(f"{type(error).__name__}: {error}")


def _whole(timed: Timed) -> dict[str, Any]:
    return {"actions": timed.chunk.actions_HJ, "server_timing": {"infer_ms": timed.infer_ms}}


def _pack(kind: str, payload: dict[str, Any], seq: int) -> bytes:
    return pack_vla_eval(vla_eval.Message(kind, payload, seq).to_wire())
