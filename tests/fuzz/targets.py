"""What reads files of others: each target is a valid folder, the file to change, and all that reads it."""

import functools
import io
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from eval.analysis.comparable import NotComparable
from eval.analysis.overview import Source, overview
from eval.analysis.sources import read_sources
from eval.analysis.summary import summarise
from eval.config.compose import configure
from eval.config.errors import one_line
from eval.config.targets import repeatable
from eval.episodes.resume import reopen
from eval.merge import merge
from eval.records.engagement import at_least, faults, join
from eval.records.reader import read_run
from eval.records.recording import load_recording, save_recording
from eval.records.resume import current_overrides, nothing_left, recorded, refuse_changed, refuse_joined
from eval.records.schema import to_json
from eval.records.sweep import SWEEP_FILE, JobRecord, read_jobs_to_run, write_job_records
from eval.records.writer import RecordingError
from eval.render.overview import markdown
from eval.render.summary import render
from eval.report.page import page
from optim.core.scales import Scales, inputs_of, linears, load_scales, write_scales
from policies.pi05 import checkpoint as checkpoint_module
from policies.pi05.checkpoint import load_checkpoint, save_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.norm_stats import unit_stats
from policies.pi05.random_weights import TOKENIZER_PATH
from tests.eval.records.test_observations import request_of
from tests.eval.written_runs import write_run
from tests.fuzz.mutate import CANARY, mutate

REFUSALS = (ValueError, OSError, RecordingError, NotComparable, HydraException, OmegaConfBaseException)
LONGEST = 8000  # characters of a message
PRECIOUS = "precious"  # beside the folder, which nobody may touch
LAZY = ("encodings", "hydra", "omegaconf", "antlr4", "rich")  # they import parts of themselves late
OVERRIDES = ["policy=baseline", "protocol=smoke", "tracking=none", "denoise.steps=3"]
SMALL: dict[str, Any] = {
    "name": "test",
    "norm_mode": "quantile",
    "state_in_prompt": False,
    "horizon": 10,
    "replan_steps": 5,
    "denoise_steps": 2,
}


@dataclass(frozen=True)
class Target:
    """A folder that `make` fills, one of its files, and a function that reads it as the commands do."""

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path, Random], object]


def try_once(target: Target, folder: Path, valid: Mapping[str, bytes], seed: int) -> str:
    """Change the file and read the folder; `read` or `refused`. AssertionError for what must not happen."""
    random = Random(seed)
    shutil.rmtree(folder)
    for name, content in valid.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / target.file).write_bytes(mutate(valid[target.file], random))
    modules = set(sys.modules)
    end = "read"
    try:
        target.read(folder, random)
    except REFUSALS as error:
        message = f"{type(error).__name__}: {one_line(error)}"
        assert 0 < len(message) < LONGEST, message[:500]
        assert "\n" not in message.strip(), message[:500]
        end = "refused"
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted((folder.name, PRECIOUS))
    assert (folder.parent / PRECIOUS).read_bytes() == b"precious"
    new = {name for name in set(sys.modules) - modules if not name.startswith(LAZY)}
    assert not new, f"imported {sorted(new)}"
    assert CANARY not in sys.modules
    return end


def prepare(target: Target, folder: Path) -> dict[str, bytes]:
    """Make the valid folder, read it once so that what reading imports is there, and return its files."""
    folder.mkdir()
    (folder.parent / PRECIOUS).write_bytes(b"precious")
    target.make(folder)
    valid = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for seed in range(3):
        target.read(folder, Random(seed))
        for name, content in valid.items():
            (folder / name).write_bytes(content)
    return valid


def _make_run(folder: Path) -> None:
    planned = {
        "suite": "libero_spatial",
        "tasks": [0, 1, 2],
        "first": 0,
        "count": 2,
        "seed": 7,
        "shard": None,
    }
    more = {
        "config": {
            "seed": 7,
            "shard": None,
            "policy": {"_target_": "eval.specs.pi05.Pi05Spec", "name": "baseline"},
            "optim": {"vision": {"_target_": "optim.eager.Eager"}},
            "suite": {"name": "libero_spatial", "max_steps": 220},
        },
        "overrides": OVERRIDES,
        "episodes": [planned],
        "simulator": {"mujoco": "3.2.3", "gl": "egl", "gl_renderer": "x"},
        "notes": ["a note"],
        "resumed": [{"provenance": {"git": {}, "packages": {}}, "runner": {"name": "local"}, "dropped": []}],
        "runner": {"name": "local", "batch_sizes": [1], "one_at_a_time": None},
    }
    shutil.rmtree(folder)
    write_run(folder, count=6, errors=[4], run=more)


def _read_run(folder: Path, random: Random) -> None:
    run = read_run(folder)
    summary = summarise(run)
    out = io.StringIO()
    Console(file=out, width=200).print(render(summary))
    to_json(summary.to_dict(), "summary")
    table = overview([Source(folder, run), Source(folder, run)], 5.0)
    text = out.getvalue() + markdown(table, "title")
    assert not set(text) & set("\x1b\x9b\u202e\x00"), "a control character is printed"
    assert "<img" not in markdown(table, "title")
    if random.random() < 0.2:
        page(table, "title", "command")


def _resume(folder: Path, random: Random) -> None:
    before = recorded(folder)
    nothing_left(folder, before)
    refuse_joined(folder, before)
    overrides = repeatable(current_overrides(before["overrides"]), [])
    if overrides != OVERRIDES or random.random() < 0.02:
        configure(overrides, typed=())
    refuse_changed(
        folder, before, {key: before[key] for key in ("config", "policy", "simulator") if key in before}
    )
    with reopen(folder) as resumed:
        served = at_least(resumed.run.run.get("engagement") or {}, resumed.run.inferences)
        faults(join([served, served]), [], misses_allowed=False)
        again = resumed.describe({"runner": {}}, {"git": {"commit": "c"}, "packages": {}})
        resumed.writer.write_run(again)
    read_run(folder)


def _read_all(folder: Path, random: Random) -> None:
    choice = random.random()
    if choice < 0.5:
        _read_run(folder, random)
    elif choice < 0.95:
        _resume(folder, random)
    else:
        merge([folder, folder], folder / "merged")


def _make_sweep(folder: Path) -> None:
    jobs = [JobRecord(f"{i}_a", f"job {i}", tuple(OVERRIDES), 0, 1.5) for i in range(3)]
    write_job_records(folder, jobs)
    _write_small_run(folder / "0_a")


def _write_small_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    _make_run(folder)


def _read_sweep(folder: Path, random: Random) -> None:
    for source in read_sources(folder):
        assert source.folder.parent == folder
    for job in read_jobs_to_run(folder / SWEEP_FILE):
        if list(job.overrides) != OVERRIDES or random.random() < 0.02:
            configure(job.overrides, typed=())


def _make_recording(folder: Path) -> None:
    samples = [(request_of(i), np.random.default_rng(i).normal(size=(10, 7))) for i in range(3)]
    save_recording(folder / "observations.npz", samples)


def _make_checkpoint(folder: Path) -> None:
    small = _small()
    save_checkpoint(folder, small.dims, small.stages, unit_stats(), TOKENIZER_PATH)


READ_ONCE = {  # the weights stay as they are
    name: functools.cache(getattr(checkpoint_module, name))
    for name in ("load_stages", "hash_weights", "stores_both_embeddings")
}


@functools.cache
def _small() -> Any:
    return load_checkpoint(CheckpointConfig(**SMALL, layout="random", sizes="small"))


def _read_checkpoint(folder: Path, _: Random) -> None:
    with patch.multiple(checkpoint_module, **READ_ONCE):
        load_checkpoint(CheckpointConfig(**SMALL, layout="native", path=str(folder)))


def _make_scales(folder: Path) -> None:
    small = _small()
    amax = {name: dict.fromkeys(linears(stage), 2.0) for name, stage in small.stages.items()}
    about = {
        "weights_sha256": small.weights_sha256,
        "checkpoint": "test",
        "observations": 8,
        "source": "test",
    }
    rest = {"tasks": ["a"], "form": "lean", "denoise_steps": 2, "dtype": "float32", "date": "2026-11-23"}
    write_scales(folder / "scales.json", Scales(**about, **rest, inputs=inputs_of(small), amax=amax))


def _read_scales(folder: Path, _: Random) -> None:
    load_scales(_small(), str(folder / "scales.json"))


TARGETS = {
    "run.json": Target("run.json", _make_run, _read_all),
    "episodes.jsonl": Target("episodes.jsonl", _make_run, _read_all),
    "inferences.jsonl": Target("inferences.jsonl", _make_run, _read_all),
    "sweep.json": Target(SWEEP_FILE, _make_sweep, _read_sweep),
    "observations.npz": Target(
        "observations.npz", _make_recording, lambda folder, _: load_recording(folder / "observations.npz")
    ),
    "config.json": Target("config.json", _make_checkpoint, _read_checkpoint),
    "norm_stats.json": Target("norm_stats.json", _make_checkpoint, _read_checkpoint),
    "scales": Target("scales.json", _make_scales, _read_scales),
}
