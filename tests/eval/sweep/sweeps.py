"""Sweeps of jobs that are faked."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from eval.app.jobs.check import Reason
from eval.app.jobs.typed import Typed
from eval.config.compose import configure
from eval.records.sweep import SWEEP_FILE
from eval.sweep.cli import RunJob, main
from policies.files import ROOT
from tests.eval.written_runs import write_run

SMALL = ROOT / "tests" / "parity" / "lerobot_small"


def parse(arguments: list[str]) -> dict[str, str]:
    """The keys and values of a job, as Hydra reads them."""
    parsed = OverridesParser.create().parse_overrides(arguments)
    assert not any(override.is_sweep_override() for override in parsed)
    chosen = OmegaConf.create({override.get_key_element(): override.value() for override in parsed})
    return {str(key): str(value) for key, value in chosen.items()}


def recorded_config(arguments: Sequence[str]) -> dict[str, Any]:
    """What a job records of its configuration in run.json."""
    return asdict(configure(recorded_overrides(arguments)))


def recorded_overrides(arguments: Sequence[str]) -> list[str]:
    """What a job records of its command line in run.json."""
    return [text for text in arguments if not text.startswith("hydra.")]


class Jobs:
    """Runs no process: writes a run, unless the job's policy is among `broken` or `interrupted`."""

    def __init__(self, broken: str = "none", interrupted: str = "none") -> None:
        self.seen: list[list[str]] = []
        self._broken, self._interrupted = broken, interrupted

    def __call__(self, arguments: list[str], log: Path) -> int:
        self.seen.append(arguments)
        chosen = parse(arguments)
        if "resume" in chosen:
            path = Path(chosen["resume"], "run.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), "finished": True}))
            return 0
        folder, policy = Path(chosen["hydra.run.dir"]), chosen["policy"]
        if policy == self._broken:
            with log.open("a") as file:  # as a process does
                file.write("a line\nerror: no GPU here\n")
            return 1
        steps = int(chosen["denoise.steps"])
        run = {"config": recorded_config(arguments), "overrides": recorded_overrides(arguments)}
        if policy == self._interrupted:
            write_run(folder, policy=policy, steps=steps, count=5, run={**run, "finished": False})
            raise KeyboardInterrupt
        write_run(folder, policy=policy, steps=steps, count=20, run=run)
        return 0


COMMAND = ["policy=baseline,trt_fp8,native_fp8", "denoise.steps=10"]


def sweep(arguments: list[str], run_job: RunJob, reasons: Mapping[str, str] = MappingProxyType({})) -> int:
    """Run a sweep on a machine that cannot run the policies of `reasons`."""

    def find_reasons(jobs: Sequence[Sequence[str]], typed: Typed) -> list[Reason | None]:
        policies = [next(text for text in job if text.startswith("policy=")) for job in jobs]
        texts = [reasons.get(policy.removeprefix("policy=")) for policy in policies]
        return [None if reason is None else Reason(reason) for reason in texts]

    return main(arguments, run_job, find_reasons)


def sweep_file(folder: Path) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = json.loads((folder / SWEEP_FILE).read_text())["jobs"]
    return jobs


def copy_without_version(folder: Path) -> Path:
    """Copy lerobot's small folder, without what tells the version that wrote it."""
    shutil.copytree(SMALL, folder)
    for name, strip in (("config.json", _without_keys), ("policy_preprocessor.json", _without_step)):
        path = folder / name
        path.write_text(json.dumps(strip(json.loads(path.read_text()))))
    return folder


def _without_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("use_relative_actions", "relative_exclude_joints")}


def _without_step(processor: dict[str, Any]) -> dict[str, Any]:
    steps = [step for step in processor["steps"] if step["registry_name"] != "relative_actions_processor"]
    return {**processor, "steps": steps}
