"""Provenance: it names code, packages and machine, and says null where there is nothing."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime

import pytest
import torch

from eval.records.provenance import collect, gpu_state
from eval.records.schema import to_plain
from eval.records.trees import SOURCES
from policies.files import ROOT


def test_provenance_is_strict_json_with_code_packages_and_machine() -> None:
    collected = collect()
    assert json.loads(json.dumps(to_plain(collected, "provenance"), allow_nan=False)) == collected
    assert all(len(collected["trees"][name]) == 40 for name in SOURCES)
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
