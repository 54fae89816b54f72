"""Start Ray on this machine, or join a cluster at an address."""

import contextlib
import logging
import os
import signal
import socket
import time

import ray

from eval.config.schema import RunnerConfig
from eval.episodes.signals import Signalled, handlers_kept
from eval.runners.base import RunnerError
from eval.runners.recorder import RunFailed
from policies.files import ROOT

OBJECT_STORE_BYTES = 256 * 2**20  # the plan, and videos that were not written yet
REQUEST_BYTES = 2**20  # more than two images have, 0.4 MB; so many go with the call itself
REACH_S = 10.0
CHECK_S = 2.0  # between two looks at the head
MISSES = 3  # looks in a row that found nobody: the head is gone, and not merely slow


def connect(options: RunnerConfig) -> None:
    """Start Ray on this machine, or join the cluster at `runner.address`.

    Raises:
        RunnerError: Ray cannot be started or reached, or the cluster has too few CPUs.
        Signalled: SIGTERM came meanwhile, of which Ray's own handler makes a SystemExit.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    if options.address is None:  # through the object store it waits for more processes
        os.environ.setdefault("RAY_max_direct_call_object_size", str(REQUEST_BYTES))
    own = {
        "address": "local",  # a cluster that happens to run here is not ours
        "num_cpus": options.workers + options.policies,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    try:
        if options.address is not None:
            _reach(options.address)
        # Ray puts the current folder first on the sys.path of its processes: an `eval.py` in it would hide
        # ours.
        with handlers_kept(), contextlib.chdir(ROOT):
            ray.init(
                **(own if options.address is None else {"address": options.address}),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except SystemExit as ended:
        raise Signalled(signal.SIGTERM) from ended
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        if options.address is None:
            way_out = ""
            if "AF_UNIX" in str(error):  # a socket's path has 107 bytes at most
                way_out = "; set RAY_TMPDIR to a folder with a shorter path, such as /tmp"
            raise RunnerError(f"Ray cannot be started on this machine: {error}{way_out}") from error
        raise RunnerError(
            f"Ray cannot be used at runner.address={options.address}: {error}; start it there with "
            "`ray start`, with RAY_AUTH_MODE=token and one ~/.ray/auth_token everywhere"
        ) from error
    cpus, needed = ray.cluster_resources().get("CPU", 0), options.workers + options.policies
    if cpus < needed:
        ray.shutdown()
        raise RunnerError(
            f"runner.workers={options.workers} and runner.policies={options.policies} "
            f"need {needed} CPUs, the cluster at {options.address} has {cpus:g}"
        )


class Head:
    """Ray's head, without which nothing goes on: Ray itself would end the process after a minute."""

    def __init__(self) -> None:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._place = host, int(port)
        self._misses = 0
        self._next_s = 0.0

    def refuse_lost(self) -> None:
        """Raise RunFailed where nobody has listened at the head's address for some seconds."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + CHECK_S
        try:
            socket.create_connection(self._place, timeout=REACH_S).close()
            self._misses = 0
        except OSError as error:
            self._misses += 1
            if self._misses >= MISSES:
                host, port = self._place
                raise RunFailed(f"Ray's head at {host}:{port} is gone: {error}") from error


def _reach(address: str) -> None:
    """Raise OSError for an address where nobody listens: Ray would wait for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise RunnerError(f"runner.address must be HOST:PORT or auto, got {address!r}")
    with socket.create_connection((host, int(port)), timeout=REACH_S):
        pass
