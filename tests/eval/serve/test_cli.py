"""`python -m eval.serve` as a process: it serves, and signals end it cleanly, with a record."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from policies.files import ROOT
from policies.remote.link import RemoteError
from tests.policies.remote.servers import remote, request

MOST_S = 10  # that a server may take to end
SMALL = ("checkpoint=random_small", "policy.device=cpu", "denoise.steps=1")


@contextmanager
def process(folder: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server with a small random network; yield it with its url once it serves."""
    command = [
        *(sys.executable, "-P", "-m", "eval.serve", "port=0", f"server.record={folder / 'serve.json'}"),
        *overrides,
    ]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        try:
            line = server.stderr.readline()
            serving = re.search(r"serving policy \S+ on (ws://127.0.0.1:\d+)", line)
            assert serving, line + server.stderr.read()
            yield server, serving[1]
        finally:
            server.kill()


def end(server: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    server.send_signal(number)
    start_s = time.monotonic()
    out, err = server.communicate(timeout=60)
    assert time.monotonic() - start_s < MOST_S
    assert "Traceback" not in out + err
    return out, err


def test_sigterm_ends_it_with_143_latency_and_engagement(tmp_path: Path) -> None:
    with process(tmp_path, *SMALL) as (server, url):
        client = remote(url)
        for call in range(3):
            client.infer([request(call)])
        out, err = end(server, signal.SIGTERM)
        with pytest.raises(RemoteError, match=r"closed the connection before it answered \(1001"):
            client.infer([request(3)])
    assert server.returncode == 128 + signal.SIGTERM
    content = json.loads((tmp_path / "serve.json").read_text())
    assert content["ended_by"] == "SIGTERM"
    assert content["infer"]["n"] == 3
    assert content["engagement"]["denoise"]["calls"] == 3
    assert content["policy"]["weights_label"] == "RANDOM WEIGHTS (small)"
    assert content["clients"][0]["left"] == "was told that the server ends"
    assert re.search(r"denoise\s+eager\s+3\s+0\s+0", out)
    assert re.search(r"all\s+3\s+\d+\.\d\d", out)
    assert f"record: {tmp_path / 'serve.json'}" in err


def test_ctrl_c_ends_it_with_130_although_a_client_says_nothing(tmp_path: Path) -> None:
    with process(tmp_path, *SMALL, "server.protocol=vla_eval") as (server, url):
        client = remote(url, protocol="vla_eval")
        out, _ = end(server, signal.SIGINT)
        client.close()
    assert server.returncode == 128 + signal.SIGINT
    assert "nobody asked for an action" in out


def test_a_policy_that_hangs_does_not_hold_the_end_up(tmp_path: Path) -> None:
    hanging = ("policy=custom", "policy._target_=tests.eval.serve.served.HangingPolicy")
    with process(tmp_path, *hanging) as (server, url):
        client = remote(url, timeout_s=1.0)
        with pytest.raises(RemoteError, match=r"did not answer"):
            client.infer([request()])
        _, err = end(server, signal.SIGTERM)
    assert server.returncode == 128 + signal.SIGTERM
    assert "the policy still computes; it ends with the process" in err
    assert json.loads((tmp_path / "serve.json").read_text())["ended_by"] == "SIGTERM"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["policy=oracle"], "error: policy=oracle reads poses from the simulator, which no client sends"),
        (["suite=libero_10"], "error: eval.serve does not read suite=libero_10; leave it out"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_1(
    overrides: list[str], says: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-m", "eval.serve", "port=0", *overrides]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(says)
