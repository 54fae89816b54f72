"""Bench: `python -m optim.bench policy=baseline,native_fp8 denoise.steps=10,3` times policies side by side.

    python -m optim.bench policy=baseline,native_fp8 denoise.steps=10,3 policy.form=lean,full \\
      checkpoint=random_full views=2 prompt_tokens=20 bench.report=docs/results/DATE_SUBJECT.md

In each round every policy infers once, on one real observation, and the order rotates; so a clock that drifts
or a warm cache meets all alike. `bench.json` in the output folder holds every sample, and `python -m
optim.bench_table FILE` prints its tables again. The exit status is 1 if a call missed its engine.
"""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.text import Text

from eval.app.command import CommandError, Flags
from eval.config.schema import ConfigError
from eval.config.tasks import choose_tasks
from eval.episodes.capture import collect_requests
from eval.records import provenance
from eval.records.observations import save_requests
from eval.records.schema import to_plain
from eval.render.console import print_error, print_info, report_console, wants_trace
from eval.sim.stack import prepare
from eval.specs.machine import explain
from eval.specs.pi05_build import choose_backends, choose_device
from optim.base import CannotRun
from optim.bench.config import LEAST_OBSERVATIONS, BenchConfig, BenchRun, Row, help_text, read_arguments
from optim.bench.measure import Backends, bench_setting, eager_float32, free, refuse_batches
from optim.bench.tables import problems, render_setting, report
from optim.commands import saved_requests, user_errors
from policies.base import Request
from policies.files import expand_home, write_atomic

RECORD_FILE = "bench.json"
CAPTURE_STEPS = 50  # control steps of an episode to take observations from: random weights never end one


def run(arguments: Sequence[str]) -> int:
    """Bench what a command line asks for, print the tables, write the record; return the exit status.

    Raises:
        CommandError: something is missing or wrong, or cannot run on this machine; earlier settings are kept.
        ConfigError, HydraException, OmegaConfBaseException: the arguments are wrong.
    """
    settings = read_arguments(arguments)
    first = settings[0].rows[0].config
    with user_errors():
        folder = _new_folder(first.bench)
        backends = {row.overrides: _backends(row) for setting in settings for row in setting.rows}
        record: dict[str, Any] = {
            "overrides": list(arguments),
            "rounds": first.bench.rounds,
            "warmup": first.bench.warmup,
            "provenance": provenance.collect(choose_device(first.pi05_options().device).index or 0),
        }
        requests, seen = _observe(first, folder)
    record |= seen | {"settings": []}
    for setting in settings:
        record["settings"].append(bench_setting(setting, backends, requests, first.bench))
        _write(folder / RECORD_FILE, record)
        report_console().print(render_setting(record["settings"][-1]))
    if first.bench.report is not None:
        path = expand_home(first.bench.report)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, report(record))
        print_info(f"report: {path}")
    print_info(f"record: {folder / RECORD_FILE}")
    failures = problems(record)
    for failure in failures:
        print_error(failure)
    return 1 if failures else 0


def _backends(row: Row) -> Backends:
    try:
        backends = choose_backends(row.config)
        refuse_batches(row.config.bench.batch, backends)
        return backends
    except (ConfigError, CannotRun) as error:
        named = isinstance(error, CannotRun) and explain(row.config, error.reasons).names_policy
        which = "" if named and row.label == row.config.policy.name else f"policy {row.label}: "
        raise ConfigError(f"{which}{error}") from error


def _observe(config: BenchRun, folder: Path) -> tuple[list[Request], dict[str, Any]]:
    """Take observations from the named file or from LIBERO, and describe them for the record."""
    file = config.bench.observations
    saved = saved_requests(file)
    if saved is not None:
        _refuse_few(saved, file)
        return saved, {"observations": _about(saved, f"file {Path(str(file)).name}"), "simulator": None}
    print_info("starting the simulator, from which the observations come")
    stack = prepare()
    requests = _record_observations(config)
    save_requests(folder / "observations.npz", requests)
    source = f"LIBERO, {config.suite.name}, the first {CAPTURE_STEPS} steps, seed {config.seed}"
    return requests, {"observations": _about(requests, source), "simulator": stack}


def _refuse_few(requests: Sequence[Request], file: str | None) -> None:
    if len(requests) < LEAST_OBSERVATIONS:
        raise ConfigError(
            f"bench.observations must hold at least {LEAST_OBSERVATIONS} observations, "
            f"got {len(requests)} in {file}; record more, or leave it out"
        )


def _record_observations(config: BenchRun) -> list[Request]:
    """Record what eager float32 sees in LIBERO, on as many tasks as there are observations."""
    every_task = replace(config, protocol=replace(config.protocol, num_tasks=None))
    tasks = choose_tasks(every_task)
    count = config.bench.num_observations
    print_info(f"recording {count} observations of {config.suite.name}; this takes a minute or two on a CPU")
    max_steps = min(config.suite.max_steps, CAPTURE_STEPS)
    requests = collect_requests(tasks, eager_float32(config), config.seed, count, max_steps=max_steps)
    free(choose_device(config.pi05_options().device))
    return requests


def _about(requests: Sequence[Request], source: str) -> dict[str, Any]:
    tasks: dict[str, set[int]] = {}
    for request in requests:
        tasks.setdefault(request.episode.suite, set()).add(request.episode.task_id)
    return {
        "source": source,
        "count": len(requests),
        "tasks": {suite: sorted(ids) for suite, ids in tasks.items()},
        "instructions": sorted({request.observation.instruction for request in requests}),
    }


def _new_folder(options: BenchConfig) -> Path:
    now = datetime.now().astimezone()
    default = Path("outputs", "bench", f"{now:%Y-%m-%d_%H-%M-%S-%f}")
    folder = default if options.output is None else expand_home(options.output)
    if (folder / RECORD_FILE).exists():
        raise ConfigError(f"bench.output={folder} already holds {RECORD_FILE}; choose a new folder")
    if options.report is not None and expand_home(options.report).exists():
        raise ConfigError(f"bench.report={options.report} already exists; choose a new file")
    return folder


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Replace the record as a whole: whoever looks finds the last one or this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(to_plain(record, "bench"), indent=1, allow_nan=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    User errors are one line and exit status 1; HYDRA_FULL_ERROR=1 shows the whole trace.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        report_console().print(Text(help_text()), soft_wrap=True)
        return 0
    Flags("bench").refuse_flags(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems: end as after ctrl-C
    try:
        return run(words)
    except (CommandError, ConfigError, HydraException, OmegaConfBaseException, OSError) as error:
        if wants_trace():
            raise
        print_error(error)
        return 1
    except KeyboardInterrupt:
        print_info("interrupted; the settings that were finished are recorded")
        return 130
