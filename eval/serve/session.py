"""One client: its noise, its place in a chunk, its latencies."""

from array import array
from dataclasses import dataclass, field
from typing import Any

from eval.analysis.latency import LatencyStats, latency_stats
from policies.base import EpisodeKey, Request
from policies.chunking import ActionQueue
from policies.remote.fields import FieldError, Received

SEVERAL = "several"  # in the place of an address, and of how a client left
CLIENT = "client"  # in the place of a suite: the noise of a client that names no episode


@dataclass
class Session:
    """What the server knows of one connection.

    Attributes:
        number: counts the connections from 0.
        queue: what is left of the last chunk, for clients that take one action an observation.
        infer_ms: what the policy took for each inference.
        total_ms: from the whole message to the answer in the system's hands.
    """

    number: int
    address: str
    seed: int
    queue: ActionQueue
    episode: int = 0
    call: int = 0
    infer_ms: "array[float]" = field(default_factory=lambda: array("d"))
    total_ms: "array[float]" = field(default_factory=lambda: array("d"))
    noted: set[str] = field(default_factory=set)  # keys that were told to be unread
    notes: int = 0  # lines about it, shown or not
    left: str | None = None  # how it ended; None while it is connected
    clients: int = 1  # how many it stands for

    @property
    def name(self) -> str:
        others = f" and {self.clients - 1} more" if self.clients > 1 else ""
        return f"client {self.number}{others} ({self.address})"

    def join(self, other: "Session") -> None:
        """Stand for the clients of another session too."""
        self.infer_ms.extend(other.infer_ms)
        self.total_ms.extend(other.total_ms)
        self.clients += other.clients
        self.address = self.left = SEVERAL

    @property
    def noise_key(self) -> EpisodeKey:
        """Whose noise it gets where it names no episode."""
        return EpisodeKey(CLIENT, self.number, self.episode, self.seed)

    def request(self, received: Received) -> Request:
        """Complete an observation with the episode and the call that its noise is drawn from."""
        if received.episode is not None and received.call is not None:
            return Request(received.observation, received.episode, received.call)
        request = Request(received.observation, self.noise_key, self.call)
        self.call += 1
        return request

    def begin_episode(self) -> None:
        """Forget the chunk; its noise goes on with the next episode, from call 0."""
        self.queue = ActionQueue(self.queue.replan_steps)
        if self.call:
            self.episode += 1
            self.call = 0

    def to_dict(self) -> dict[str, Any]:
        """For the record, in JSON's types."""
        return {
            "client": self.number,
            "clients": self.clients,
            "address": self.address,
            "inferences": len(self.infer_ms),
            "infer": describe(self.infer_ms),
            "total": describe(self.total_ms),
            "left": self.left,
        }


def join_ended(sessions: list[Session], most: int) -> None:
    """Join the oldest sessions that have ended until there are `most`, or none is left to be joined."""
    while len(sessions) > most:
        ended = [i for i, session in enumerate(sessions) if session.left is not None][:2]
        if len(ended) < 2:
            return
        sessions[ended[0]].join(sessions.pop(ended[1]))


def describe(latencies_ms: "array[float]") -> dict[str, Any] | None:
    """Statistics for JSON; None where there are no latencies."""
    stats = stats_of(latencies_ms)
    return None if stats is None else dict(vars(stats))


def stats_of(latencies_ms: "array[float]") -> LatencyStats | None:
    return latency_stats(latencies_ms) if latencies_ms else None


class CountsItself(FieldError):
    """A client that counts calls, where the server counts them: no observation of its can be answered."""


def refuse_call(received: Received) -> None:
    """Raise CountsItself for `episode` and `call` where the server counts calls by itself."""
    if received.episode is not None:
        raise CountsItself(
            "episode and call are not read with server.answer=action, which counts calls by itself; "
            "serve policy=remote with server.answer=chunk"
        )
