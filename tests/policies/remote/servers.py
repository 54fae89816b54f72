"""Policy servers that misbehave, in a thread each."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from policies.base import EpisodeKey, Observation, Request
from policies.remote import RemotePolicy
from policies.remote.wire import pack_openpi

Handler = Callable[[ServerConnection], None]
ACTIONS = np.arange(70.0).reshape(10, 7) / 70


@contextlib.contextmanager
def serving(handler: Handler, **options: Any) -> Iterator[str]:
    """Serve with websockets' own server; yield the url."""

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            handler(connection)

    with serve(
        handle, "127.0.0.1", 0, compression=None, max_size=None, close_timeout=0.2, **options
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def answering(answer: Any, metadata: Any = None) -> Handler:
    """Greet as openpi's server does, and answer every observation alike; bytes and text go as they are."""

    def handle(connection: ServerConnection) -> None:
        connection.send(pack_openpi({} if metadata is None else metadata))
        for _ in connection:
            connection.send(answer if isinstance(answer, bytes | str) else pack_openpi(answer))

    return handle


def request(call: int = 0, episode: int = 0, instruction: str = "pick up the black bowl") -> Request:
    """A request with grey images of 16 pixels."""
    images = {
        "agentview_image": np.full((16, 16, 3), 10, np.uint8),
        "robot0_eye_in_hand_image": np.full((16, 16, 3), 20, np.uint8),
    }
    observation = Observation(images, np.arange(8) / 8, instruction)
    return Request(observation, EpisodeKey("libero_spatial", 2, episode, 7), call)


def remote(url: str, **options: Any) -> RemotePolicy:
    """Connect, with short limits."""
    return RemotePolicy(url, "weights of a test", **{"timeout_s": 5.0, "connect_timeout_s": 5.0, **options})
