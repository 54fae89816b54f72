"""Ray on several nodes, joined by an address."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval.config.schema import RunnerConfig
from eval.episodes.signals import Signalled, exit_status
from eval.records.reader import read_run
from eval.runners.base import RunnerError
from eval.runners.ray.cluster import connect
from policies.files import ROOT
from tests.eval.fake_run import results, run, start


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(RunnerError, match=r"Ray cannot be used at runner\.address=127\.0\.0\.1:1: .*refused"):
        start("ray", address="127.0.0.1:1")
    with pytest.raises(
        RunnerError, match=r"runner\.address must be HOST:PORT or auto, got 'ray://head:10001'"
    ):
        start("ray", address="ray://head:10001")


def test_a_signal_that_comes_while_ray_starts_is_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("ray.init", init)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Signalled) as interrupt:
        connect(RunnerConfig("ray"))
    assert exit_status(interrupt.value) == 143
    assert signal.getsignal(signal.SIGTERM) == before


@dataclass(frozen=True)
class Cluster:
    """Two Ray nodes of two cores each on this machine; `environ` is that of those who join."""

    address: str
    environ: dict[str, str]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with a token of its own, in processes that this test ends."""
    home = tmp_path / "home"
    home.mkdir()
    inherited = {
        name: value for name, value in os.environ.items() if name != "RAY_max_direct_call_object_size"
    }
    environ = inherited | {  # without what a runner on this machine has set for itself
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    ray_command = str(Path(sys.executable).with_name("ray"))
    port = free_port()
    quiet: dict[str, Any] = {"env": environ, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([ray_command, "get-auth-token", "--generate"], check=True, **quiet)
    common = ["--num-cpus=2", "--object-store-memory=100000000", "--block"]
    nodes = (["--head", f"--port={port}", "--include-dashboard=false"], [f"--address=127.0.0.1:{port}"])
    started: list[subprocess.Popen[bytes]] = []
    try:
        for node in nodes:
            started.append(subprocess.Popen([ray_command, "start", *node, *common], **quiet))
            wait_for_nodes(f"127.0.0.1:{port}", len(started), environ)
        yield Cluster(f"127.0.0.1:{port}", environ)
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_nodes(address: str, count: int, environ: dict[str, str]) -> None:
    """Return when so many nodes have joined."""
    ask = "import ray, sys; ray.init(sys.argv[1], logging_level=50); print(len(ray.nodes()))"
    host, port = address.split(":")
    for _ in range(30):
        time.sleep(1)
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            command = [sys.executable, "-c", ask, address]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if done.stdout.strip() == str(count):
                return
    pytest.fail(f"{count} Ray nodes did not start at {address}")


def test_two_nodes_joined_by_an_address_record_the_same(tmp_path: Path, cluster: Cluster) -> None:
    def join(workers: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.eval.fake_run", str(tmp_path / "ray"), "ray"]
        options = [json.dumps({"address": cluster.address, "workers": workers})]
        return subprocess.run(
            [*command, *options], cwd=ROOT, env=cluster.environ, capture_output=True, text=True, check=False
        )

    assert re.search(r"need 10 CPUs, the cluster at .* has 4", join(workers=9).stderr)
    done = join(workers=3)
    assert done.returncode == 0, done.stderr
    recorded = read_run(tmp_path / "ray")
    assert results(recorded) == results(run(tmp_path / "local"))
    assert recorded.run["runner"]["nodes"] == 2
