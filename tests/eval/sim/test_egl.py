"""EGL draws with the GPU that CUDA uses, and robosuite does not see what CUDA_VISIBLE_DEVICES says."""

import ctypes.util
import os
import subprocess
import sys

import pytest

from eval.sim.egl import choose_device, cuda_ordinals, for_robosuite
from eval.sim.stack import SimulatorError
from policies.files import ROOT

UUID = "GPU-8f5e2b1c-0000-0000-0000-000000000000"
# What NVIDIA's EGL said on a machine with two GPUs, for each CUDA_VISIBLE_DEVICES.
SEEN = {None: [0, 1], "0": [0, None], "1": [None, 0], "1,0": [1, 0], UUID: [None, 0], "": [None, None]}


@pytest.mark.parametrize(
    ("visible", "gpu_index", "device"),
    [
        (None, 0, 0),
        (None, 1, 1),
        ("0", 0, 0),
        ("1", 0, 1),
        ("1,0", 0, 1),
        ("1,0", 1, 0),
        (UUID, 0, 1),
        ("", 0, 0),
    ],
)
def test_the_device_is_the_gpu_in_use(
    visible: str | None, gpu_index: int, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    assert choose_device(SEEN[visible], gpu_index) == device


def test_a_device_that_was_asked_for_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "1")
    assert choose_device([0, 1]) == 1


@pytest.mark.parametrize("asked", ["2", "-1", "", UUID, "0,1"])
def test_a_device_that_is_none_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", asked)
    with pytest.raises(
        SimulatorError, match=rf"MUJOCO_EGL_DEVICE_ID must be 0 to 1, .* got '{asked}'; unset"
    ):
        choose_device([0, 1])


def test_robosuite_sees_one_device_and_the_variables_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUID)
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    with for_robosuite(1):
        assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "1"
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == UUID
    assert "MUJOCO_EGL_DEVICE_ID" not in os.environ


@pytest.mark.sim
@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="needs libEGL")
@pytest.mark.parametrize(
    ("backend", "visible"), [("egl", "3"), ("egl", UUID), ("egl", ""), ("egl", "-1"), ("osmesa", "3")]
)
def test_a_simulator_starts_whatever_gpus_are_visible(backend: str, visible: str) -> None:
    if backend == "egl" and not cuda_ordinals():
        pytest.skip("EGL has no device here")
    environ = {
        **os.environ,
        "MUJOCO_GL": backend,
        "CUDA_VISIBLE_DEVICES": visible,
        "MUJOCO_EGL_DEVICE_ID": "0",
    }
    environ.pop("PYOPENGL_PLATFORM", None)
    code = "import os; from eval.sim.stack import prepare; gl = prepare()['gl']; "
    code += "print(gl, os.environ['CUDA_VISIBLE_DEVICES'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{backend} {visible}\n", done.stderr
