"""Mirrors in memory; every test begins without Hydra, and no power is lost."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import fsspec
import pytest
from hydra.core.global_hydra import GlobalHydra

Mirror = Callable[[Mapping[str, bytes]], str]
"""Puts files into memory, and returns the URL of their folder."""


FILES = {"a/one": b"1" * 2500, "a/two": b"2", "b/three": b"333"}


@pytest.fixture(autouse=True)
def _no_hydra_and_no_power_loss(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    GlobalHydra.instance().clear()
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    memory = fsspec.filesystem("memory")

    def put(files: Mapping[str, bytes]) -> str:
        for name, content in files.items():
            memory.pipe(f"/mirror/{name}", content)
        return "memory://mirror"

    yield put
    if memory.exists("/mirror"):
        memory.rm("/mirror", recursive=True)


def arrived(folder: Path) -> dict[str, bytes]:
    """The files in `folder / "source"`, by their paths there."""
    source = folder / "source"
    paths = [path for path in source.rglob("*") if path.is_file()]
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
