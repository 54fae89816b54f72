"""A bench that was run, and the command line that runs another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from eval.records.observations import save_requests
from optim.bench.cli import main
from tests.optim.bench.short import OBSERVATIONS, ROUNDS, SMALL, WARMUP, request


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Observations of two prompt lengths."""
    path = tmp_path_factory.mktemp("observations") / "some.npz"
    save_requests(path, [request(i) for i in range(OBSERVATIONS)])
    return path


@pytest.fixture(scope="session")
def bench(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, Path]]:
    """Run a bench on these observations; its exit status and its folder."""

    def run(*arguments: str) -> tuple[int, Path]:
        GlobalHydra.instance().clear()
        folder = tmp_path_factory.mktemp("bench")
        sizes = (f"bench.rounds={ROUNDS}", f"bench.warmup={WARMUP}", f"bench.observations={file}")
        return main([*SMALL, *sizes, f"bench.output={folder}", *arguments]), folder

    return run


@pytest.fixture(scope="session")
def done(bench: Callable[..., tuple[int, Path]]) -> Path:
    """The folder of a bench of two policies at two numbers of steps, with a report."""
    file = "bench.report=${bench.output}/report.md"
    status, folder = bench("policy=baseline", "policy.precision=float32,bfloat16", "steps=2,1", file)
    assert status == 0
    return folder


@pytest.fixture
def record(done: Path) -> dict[str, Any]:
    return json.loads((done / "bench.json").read_text())
