"""RemotePolicy: asks a server for actions and holds it to what it promised.

H horizon, J 7 robot action dims.
"""

import logging
import math
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from policies.base import ACTION_DIM, ActionChunk, EpisodeKey, Request
from policies.remote import fields, vla_eval
from policies.remote.link import Link, RemoteError, one_line
from policies.remote.options import MAX_S, PROTOCOLS, read_key
from policies.remote.speakers import WEIGHTS, Greeting, make_speaker
from policies.remote.wire import MEBIBYTE
from policies.text import shorten, visible

log = logging.getLogger(__name__)

SERVER, WAY = "server", "way"  # what a round trip consists of
MAX_NUMBERS = 64  # of an array in the metadata that go into the records
MAX_LEVELS = 8  # of maps and lists in it


class RemotePolicy:
    """Implements `policies.base.Policy` by a server's.

    Non-obvious behaviors:
        * It connects when it is made, and again only at an episode's first inference: a connection that is
          lost takes its episode with it, and the run goes on.
        * After every fault, and every exception of a signal's handler, the connection is dropped, because the
          late answer to one observation would be taken for the answer to the next.
        * A server that comes back with other metadata is refused: the run would mix two policies.

    Args:
        url: ws://HOST:PORT.
        label: which weights are served, in the words of whoever asks; the records' name for them.
        protocol: openpi or vla_eval.
        timeout_s: how long an answer may take; a server that compiles its first call needs minutes.
        connect_timeout_s: how long to wait for the server to listen.
        replan_steps: actions to execute of a chunk; None takes what the server says, or what the protocol's
            own LIBERO client executes.
        api_key_env: the environment variable that holds the server's key.
        max_message_mb: MiB of one answer at most.
        whole_turn: vla_eval alone: whether the state's angle goes up to 2 pi; None: as the server asks.

    Raises:
        ValueError: an argument that is not allowed.
        RemoteError: no server there, or one that does not speak this protocol.
    """

    needs_privileged = False

    def __init__(
        self,
        url: str,
        label: str,
        *,
        name: str = "remote",
        protocol: str = "openpi",
        timeout_s: float = 60.0,
        connect_timeout_s: float = 60.0,
        replan_steps: int | None = None,
        api_key_env: str | None = None,
        max_message_mb: int = 16,
        whole_turn: bool | None = None,
    ) -> None:
        check_options(
            url, label, protocol, timeout_s, connect_timeout_s, replan_steps, max_message_mb, whole_turn
        )
        self.name = name
        self._url, self._label, self._protocol = url, label, protocol
        self._connect_timeout_s = connect_timeout_s
        key = read_key("policy.api_key_env", api_key_env)
        link = Link(url, timeout_s, max_message_mb * MEBIBYTE, key)
        self._speaker = make_speaker(protocol, link, whole_turn)
        self._link = link
        weakref.finalize(self, link.close)  # a goodbye, also where nobody calls `close`
        self._served = self._connect()
        self.cameras = self._served.cameras
        self.replan_steps = replan_steps or self._served.replan_steps
        self._connections = 1
        self._episodes: dict[EpisodeKey, int] = {}  # the connection that each episode began on
        self._warned = False

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Ask for each request in turn.

        Raises RemoteError for a server that is lost, late, or answers with anything but a chunk of finite
        actions that is long enough.
        """
        return [self._infer(request) for request in requests]

    def provenance(self) -> dict[str, Any]:
        metadata = self._served.metadata
        own = metadata.get("policy") if fields.is_own(metadata) else None
        weights = {key: own[key] for key in WEIGHTS if key in own} if isinstance(own, Mapping) else {}
        return {
            "policy": self.name,
            "kind": "remote",
            "url": self._url,
            "protocol": self._protocol,
            "label": self._label,
            "checkpoint": self._label,
            "weights_label": f"as {self._url} serves them",
            **weights,
            "replan_steps": self.replan_steps,
            "image_size": self._served.image_size,
            "server": metadata,
        }

    def engagement(self) -> dict[str, dict[str, Any]]:
        return {}

    def close(self) -> None:
        """Leave the server."""
        self._link.close()

    def _infer(self, request: Request) -> ActionChunk:
        lost = self._link.is_dropped or self._episodes.get(request.episode) != self._connections
        if request.call > 0 and lost:
            raise RemoteError(
                f"policy.url={self._url}: the connection on which {request.episode} began is lost; "
                "the next episode connects again"
            )
        with self._link.closing_on_error():
            return self._ask(request)

    def _ask(self, request: Request) -> ActionChunk:
        called_s = time.perf_counter()
        if request.call == 0:
            self._connect_again()
            self._episodes[request.episode] = self._connections
        start_s = time.perf_counter()
        if request.call == 0:
            self._speaker.begin(request)
        answer = self._speaker.ask(request)
        actions_HJ = self._actions(answer)
        total_ms = (time.perf_counter() - start_s) * 1e3
        stage_ms = self._split(server_ms(answer), total_ms)
        return ActionChunk(actions_HJ, stage_ms, setup_ms=(start_s - called_s) * 1e3)

    def _connect_again(self) -> None:
        """Connect where the connection is lost; RemoteError where another policy answers."""
        if self._link.is_open:
            return
        again = self._connect()
        if again != self._served:
            before, now = self._served.metadata, again.metadata
            keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            raise self._link.fault(
                f"serves something else than when the run began ({one_line(shorten(keys))}); start a new run"
            )
        self._connections += 1
        self._episodes.clear()

    def _connect(self) -> Greeting:
        with self._link.closing_on_error():
            self._link.open(self._connect_timeout_s)
            greeting = self._speaker.greet()
            metadata = {key: value for key, value in plain(greeting.metadata).items() if key != "client"}
        return Greeting(metadata, greeting.cameras, greeting.image_size, greeting.replan_steps)

    def _actions(self, answer: Mapping[Any, Any]) -> NDArray[np.float64]:
        actions = answer.get("actions", answer.get("action"))
        if isinstance(actions, list):
            if not _are_numbers(actions):
                raise self._link.fault(f"sent actions that are not numbers: {fields.spell(actions)}")
            try:
                actions = fields.as_float64(actions)
            except (TypeError, ValueError, OverflowError) as error:
                raise self._link.fault(
                    f"sent actions that are not numbers: {one_line(str(error))}"
                ) from error
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
            raise self._link.fault(f"sent no actions, but {fields.spell(actions)}; look at the server")
        chunk = actions[None] if actions.shape == (ACTION_DIM,) else actions
        if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM:
            raise self._link.fault(
                f"sent actions {actions.shape}, LIBERO takes (horizon, {ACTION_DIM}); is it LIBERO's policy?"
            )
        if len(chunk) < self.replan_steps:
            raise self._link.fault(
                f"sent {len(chunk)} actions, policy.replan_steps={self.replan_steps} are to be executed; "
                f"set policy.replan_steps={max(len(chunk), 1)}"
            )
        chunk = fields.as_float64(chunk)
        if not np.isfinite(chunk).all():
            raise self._link.fault(f"sent {int((~np.isfinite(chunk)).sum())} actions that are not finite")
        return chunk

    def _split(self, server: float | None, total_ms: float) -> dict[str, float]:
        """Split a round trip where the server said how long it took, and that can be true."""
        if server is None:
            return {}
        if not 0 < server < total_ms:
            if not self._warned:
                log.warning("%s says %g ms for a round trip of %g ms; not split", self._url, server, total_ms)
            self._warned = True
            return {}
        return {SERVER: server, WAY: total_ms - server}


def check_options(
    url: str,
    label: str,
    protocol: str,
    timeout_s: float,
    connect_timeout_s: float,
    replan_steps: int | None,
    max_message_mb: int,
    whole_turn: bool | None,
) -> None:
    """Raise ValueError for an option of `RemotePolicy` that is not allowed."""
    check_url(url)
    if not label.strip():
        raise ValueError("policy.label must say which weights are served; the records name them by it")
    if protocol not in PROTOCOLS:
        raise ValueError(f"policy.protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    for key, seconds in (("timeout_s", timeout_s), ("connect_timeout_s", connect_timeout_s)):
        if not 0 < seconds <= MAX_S:
            raise ValueError(f"policy.{key} must be > 0 and at most a day ({MAX_S:g}), got {seconds}")
    if replan_steps is not None and replan_steps < 1:
        raise ValueError(f"policy.replan_steps must be >= 1, or null, got {replan_steps}")
    if not 1 <= max_message_mb <= fields.MOST_MB:
        raise ValueError(f"policy.max_message_mb must be 1 to {fields.MOST_MB}, got {max_message_mb}")
    if whole_turn is not None and protocol != vla_eval.NAME:
        raise ValueError("policy.whole_turn is read with policy.protocol=vla_eval alone; leave it null")


def check_url(url: str) -> None:
    """Raise ValueError for what is no ws://HOST:PORT, and for a place in it that could hold a secret."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        host.encode("idna")
    except ValueError as error:  # a port, or a host, that is none
        raise ValueError(f"policy.url must be ws://HOST:PORT, got {url!r}: {error}") from error
    if "@" in parts.netloc or parts.query:
        raise ValueError(
            "policy.url must hold no name, no password and nothing behind a ?, which the records would show; "
            "name a variable that holds the key with policy.api_key_env=NAME"
        )
    if parts.scheme not in ("ws", "wss") or not host or port == 0 or parts.fragment or visible(url) != url:
        raise ValueError(f"policy.url must be ws://HOST:PORT, got {url!r}")


def server_ms(answer: Mapping[Any, Any]) -> float | None:
    """The server's own milliseconds: all of its work, or its policy's; None where it says neither."""
    for timing in (answer.get("server_timing"), answer.get("policy_timing")):
        ms = timing.get("infer_ms") if isinstance(timing, Mapping) else None
        if isinstance(ms, int | float | np.floating) and math.isfinite(ms):
            return float(ms)
    return None


def _are_numbers(value: Any) -> bool:
    """Whether a list holds numbers alone; NumPy would read a text as one."""
    if isinstance(value, list):
        return all(map(_are_numbers, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "fiu"
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any, levels: int = MAX_LEVELS) -> Any:
    """Turn metadata into JSON's types; what is not one, or lies deeper, becomes text that says so."""
    if isinstance(value, Mapping | list | tuple) and levels == 0:
        return fields.spell(value)
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else fields.spell(key): plain(item, levels - 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item, levels - 1) for item in value]
    if isinstance(value, np.ndarray) and value.size <= MAX_NUMBERS and value.dtype.kind in "biufU":
        return plain(value.tolist())
    if isinstance(value, np.longdouble):
        return plain(float(value))  # its `item` is no number of Python's
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return fields.spell(value)
