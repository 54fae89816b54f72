"""Makers of records, command lines in this process, and a home without a W&B login, for tests of eval."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from eval.cli import main
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RunWriter

EPISODE = EpisodeRecord(
    suite="libero_spatial",
    task_id=0,
    instruction="pick up the black bowl between the plate and the ramekin and place it on the plate",
    episode=0,
    seed=7,
    seeding="paired",
    success=True,
    steps=112,
    inferences=0,
    wall_s=14.25,
    policy="full_optimized",
    checkpoint="pi05_libero",
    checkpoint_sha256="c" * 64,
    weights_label=None,
    actions_sha256="a" * 64,
    initial_state_sha256="b" * 64,
)
INFERENCE = InferenceRecord(
    suite="libero_spatial",
    task_id=0,
    episode=0,
    seed=7,
    call=0,
    infer_ms=20.5,
    stage_ms={"vision": 4.25, "prefix": 8.5, "denoise": 7.0},
    warmup=False,
    backends={"vision": "tensorrt_fp8", "prefix": "tensorrt_fp8", "denoise": "cuda_graph"},
)


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., EpisodeRecord]:
    """A successful episode with some fields changed; giving `error_type` makes it an error."""

    def make(**changes: Any) -> EpisodeRecord:
        if "error_type" in changes:
            changes = {"success": None, "error_message": "GL context lost", "actions_sha256": None, **changes}
        return replace(EPISODE, **changes)

    return make


@pytest.fixture(scope="session")
def make_inference() -> Callable[..., InferenceRecord]:
    """An inference of that episode with some fields changed."""

    def make(**changes: Any) -> InferenceRecord:
        return replace(INFERENCE, **changes)

    return make


@pytest.fixture(scope="session")
def run_json() -> dict[str, Any]:
    """What the runner writes into run.json, as far as a summary reads it."""
    return {
        "policy": {
            "device": "NVIDIA H200",
            "dtype": "bfloat16",
            "form": "lean",
            "denoise_steps": 10,
            "replan_steps": 5,
        },
        "weights_label": None,
        "gl_backend": "egl",
        "engagement": {
            "vision": {"backend": "tensorrt_fp8", "calls": 12, "misses": 0},
            "prefix": {"backend": "tensorrt_fp8", "calls": 12, "misses": 0},
            "denoise": {"backend": "cuda_graph", "calls": 12, "misses": 0},
        },
        "provenance": {"git": {"commit": "0123456789abcdef", "dirty": False, "error": None}},
        "planned_episodes": 1,
        "tracking_error": None,
        "video_error": None,
    }


@pytest.fixture
def write_run(
    tmp_path: Path,
    make_episode: Callable[..., EpisodeRecord],
    make_inference: Callable[..., InferenceRecord],
    run_json: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Write a run of `count` episodes over ten tasks, all or the first `quiet` alone; return its folder."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no power is lost here

    def write(
        name: str,
        *,
        failures: Iterable[int] = (),
        errors: Iterable[int] = (),
        count: int = 200,
        first: int = 0,
        infer_ms: float = 20.0,
        tasks: int = 10,
        quiet: int | None = None,
        run: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        with RunWriter(folder) as writer:
            writer.write_run({**run_json, "planned_episodes": count, **(run or {})})
            for i in range(first, first + count):
                key = {"task_id": i % tasks, "episode": i // tasks}
                stage_ms = {"vision": infer_ms / 4, "prefix": infer_ms / 4, "denoise": infer_ms / 3}
                jitter = 1 + (i % 7) / 100
                writer.add_inference(
                    make_inference(
                        **key,
                        infer_ms=infer_ms * jitter,
                        stage_ms=stage_ms,
                        under_load=quiet is not None and i >= first + quiet,
                    )
                )
                outcome: dict[str, Any] = {"success": i not in set(failures)}
                if i in set(errors):
                    outcome = {"error_type": "RuntimeError"}
                writer.add_episode(make_episode(**key, inferences=1, **(outcome | changes)))
        return folder

    return write


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a login, and no W&B settings in the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    return home


@pytest.fixture
def command_line(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """`main` with these arguments, its output below `tmp_path`; what it leaves in the process is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def run(*arguments: str, full_error: str = "0") -> None:
        GlobalHydra.instance().clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
        where = [] if any(a.startswith("hydra.") for a in arguments) else [f"hydra.run.dir={tmp_path}/run"]
        monkeypatch.setattr(sys, "argv", ["eval", *where, *arguments])
        main()

    yield run
    GlobalHydra.instance().clear()
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def refusal(command_line: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What bad input prints: exit status 1, nothing on stdout, one line on stderr, which is returned."""

    def refuse(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            command_line(*arguments)
        out, err = capfd.readouterr()
        assert exit_.value.code == 1
        assert out == ""
        assert err.endswith("\n")
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return refuse
