"""RemotePolicy refuses wrong options before it opens anything."""

from typing import Any

import pytest

from policies.remote import RemotePolicy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "http://x"}, "policy.url must be ws://HOST:PORT, got 'http://x'"),
        ({"url": "ws://me:secret@x"}, "policy.url must hold no name, no password and nothing behind a"),
        ({"url": "wss://x/?token=abc"}, "policy.url must hold no name, no password and nothing behind a"),
        ({"url": "ws://x:99999"}, "policy.url must be ws://HOST:PORT, got 'ws://x:99999': Port out of range"),
        ({"url": "ws://x:port"}, "policy.url must be ws://HOST:PORT, got 'ws://x:port'"),
        ({"url": "ws://x:0"}, "policy.url must be ws://HOST:PORT, got 'ws://x:0'"),
        ({"url": "ws://:8000"}, "policy.url must be ws://HOST:PORT, got 'ws://:8000'"),
        ({"url": "ws://x:8000#y"}, "policy.url must be ws://HOST:PORT, got"),
        ({"url": f"ws://{'x' * 100}:1"}, "policy.url must be ws://HOST:PORT, got"),
        ({"url": "ws://a..b:1"}, "policy.url must be ws://HOST:PORT, got"),
        ({"url": "ws://[::1"}, "policy.url must be ws://HOST:PORT, got"),
        ({"url": "ws://x\n:8000"}, "policy.url must be ws://HOST:PORT, got"),
        ({"label": " "}, "policy.label must say which weights are served"),
        ({"protocol": "grpc"}, "policy.protocol must be one of openpi, vla_eval"),
        ({"timeout_s": 0.0}, "policy.timeout_s must be > 0"),
        ({"connect_timeout_s": float("inf")}, "policy.connect_timeout_s must be > 0"),
        ({"timeout_s": 1e30}, "policy.timeout_s must be > 0 and at most a day .86400., got 1e.30"),
        ({"connect_timeout_s": float("nan")}, "policy.connect_timeout_s must be > 0"),
        ({"replan_steps": 0}, "policy.replan_steps must be >= 1"),
        ({"max_message_mb": 0}, "policy.max_message_mb must be 1 to 1024"),
        ({"max_message_mb": 10**9}, "policy.max_message_mb must be 1 to 1024"),
        ({"whole_turn": True}, "policy.whole_turn is read with policy.protocol=vla_eval alone"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_opened(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RemotePolicy(**{"url": "ws://127.0.0.1:1", "label": "x", **options})
