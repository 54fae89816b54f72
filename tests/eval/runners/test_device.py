"""A lost GPU is told by the type of an error, not by words in it."""

import subprocess
import sys

import pytest
import torch

from eval.runners.device import is_device_lost
from policies.files import ROOT
from policies.remote.link import RemoteError

LOST = "CUDA error: device-side assert triggered"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(LOST),
        torch.AcceleratorError(LOST),
        caused(ValueError("stage vision failed"), RuntimeError(LOST)),
    ],
    ids=repr,
)
def test_cudas_own_errors_are_a_lost_gpu(error: Exception) -> None:
    assert is_device_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        FloatingPointError("actions are not finite"),
        RemoteError("policy.url=ws://x:1 reports an error: CUDA error: out of memory"),
        caused(RemoteError("closed"), RuntimeError(LOST)),
        ValueError(LOST),
        ValueError(f"the prompt {LOST!r} has 1200 tokens"),
        RuntimeError(f"cannot do {LOST!r}"),
        NotImplementedError(LOST),
    ],
    ids=repr,
)
def test_an_error_of_one_request_is_no_lost_gpu_whatever_it_says(error: Exception) -> None:
    assert not is_device_lost(error)


def test_torch_is_not_imported_to_tell() -> None:
    script = (
        "import sys; from eval.runners.device import is_device_lost; "
        f"assert not is_device_lost(RuntimeError({LOST!r})); "
        "import eval.serve.inference; assert not {'torch', 'ray'} & set(sys.modules)"
    )
    environ = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, "-c", script], env=environ, check=True)
