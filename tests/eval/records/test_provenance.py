"""Provenance: it names code, packages and machine, and says null where there is nothing."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from eval.records.provenance import collect, git_state, gpu_state
from eval.records.schema import to_plain
from policies.files import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def test_provenance_is_strict_json_with_code_packages_and_machine() -> None:
    collected = collect()
    assert json.loads(json.dumps(to_plain(collected, "provenance"), allow_nan=False)) == collected
    assert datetime.fromisoformat(collected["time"]).tzinfo is not None
    assert "pytest" in collected["command"]
    assert collected["python"] == platform.python_version()
    assert collected["packages"]["mujoco"] is not None
    assert collected["packages"]["tensorrt-rtx"] is None or isinstance(
        collected["packages"]["tensorrt-rtx"], str
    )
    assert collected["cpu"]["cores"] >= 1
    assert collected["cpu"]["torch_threads"] >= 1


def test_the_instructions_that_torch_was_told_to_use_are_recorded() -> None:
    code = "from eval.records.provenance import collect; print(collect()['cpu']['torch_capability'])"
    environ = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "DEFAULT\n"


def test_a_clean_tree_has_its_commit(repository: Path) -> None:
    state = git_state(repository)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False


def test_a_new_file_makes_the_tree_dirty(repository: Path) -> None:
    (repository / "new.py").touch()
    assert git_state(repository)["dirty"] is True


def test_outside_git_the_commit_is_null_and_the_reason_is_kept(tmp_path: Path) -> None:
    state = git_state(tmp_path)
    assert (state["commit"], state["dirty"]) == (None, None)
    assert "not a git repository" in state["error"]


def test_a_machine_without_git_has_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    state = git_state(repository)
    assert state["commit"] is None
    assert "git" in state["error"]


def test_a_machine_without_a_gpu_says_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_state() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_named_with_its_driver() -> None:
    state = gpu_state()
    assert state is not None
    assert "NVIDIA" in state["name"]
    assert state["driver"]
