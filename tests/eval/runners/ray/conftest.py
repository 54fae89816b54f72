"""A time limit for tests that could hang, and faults of the fakes."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.eval.fakes import FAULTS

LIMIT_S = 600  # of a test


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Let a test that hangs fail."""

    def over(*_: Any) -> None:
        raise SystemExit(f"not over after {LIMIT_S} s")  # ray.get goes on waiting after another exception

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these faults happen (see tests/eval/fakes.py)."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv(FAULTS, str(folder))

    def let_happen(*names: str) -> None:
        for name in names:
            (folder / name).touch()

    return let_happen
