"""TensorRT's options, and machines that cannot run it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from optim.base import CannotRun, StageContext, check_backends
from optim.tensorrt.backend import TensorRT

CUDA, BF16 = torch.device("cuda"), torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, r"precision must be one of fp16, bf16, fp8, got 'int8'"),
        ({"precision": "fp8", "fp8_linears": "norms"}, r"fp8_linears must be one of all, mlp, got 'norms'"),
        (
            {"precision": "bf16", "fp8_linears": "all"},
            "fp8_linears=all needs precision=fp8, got precision=bf16; leave fp8_linears out",
        ),
        ({"precision": "bf16", "cache_dir": ""}, "cache_dir must be a folder or null"),
    ],
)
def test_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorRT(**options)


def test_fp8_needs_calibration_for_its_scales_and_fp16_for_its_range() -> None:
    assert [TensorRT(precision).needs_amax for precision in ("fp16", "bf16", "fp8")] == [True, False, True]


def _install(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr("optim.tensorrt.backend._installed", lambda package: package in packages)


ALL = ("torch_tensorrt", "tensorrt_rtx", "modelopt")


@pytest.mark.parametrize(
    ("precision", "stage", "packages", "device", "dtype", "message"),
    [
        ("bf16", "denoise", ALL, CUDA, BF16, "TensorRT supports vision and prefix, got denoise"),
        ("fp16", "prefix", ALL, CUDA, BF16, "prefix overflows in fp16; choose precision=bf16"),
        ("bf16", "vision", (), CUDA, BF16, r"needs torch-tensorrt, tensorrt; pip install -c constraints"),
        ("bf16", "vision", ALL[:1], CUDA, BF16, r"needs tensorrt; pip install -c constraints"),
        ("fp8", "prefix", ALL[:2], CUDA, BF16, r"needs nvidia-modelopt; pip install -c constraints"),
        ("bf16", "vision", ALL, torch.device("cpu"), BF16, "needs an NVIDIA GPU, got policy.device=cpu"),
        ("bf16", "vision", ALL, CUDA, torch.float32, "needs policy.precision=bfloat16, got float32"),
        ("fp8", "prefix", ALL, CUDA, torch.float32, "needs policy.precision=bfloat16, got float32"),
    ],
)
def test_machine_that_cannot_run_it_is_told_in_one_line(
    precision: str,
    stage: str,
    packages: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _install(monkeypatch, *packages)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(CannotRun, match=message) as refused:
        check_backends({stage: TensorRT(precision)}, device, dtype)
    assert "\n" not in str(refused.value)


def test_fp8_on_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, *ALL)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(CannotRun, match=r"TensorRT in FP8 needs compute capability 8\.9, A100 has 8\.0"):
        TensorRT("fp8").check("prefix", CUDA, BF16)
    TensorRT("bf16").check("prefix", CUDA, BF16)
    TensorRT("fp16").check("vision", CUDA, torch.float32)


def test_engine_without_a_name_for_its_weights_is_not_cached(small_sources: dict[str, StageContext]) -> None:
    with pytest.raises(ValueError, match="set cache_dir=null"):
        TensorRT("bf16")(replace(small_sources["vision"], weights_sha256=""))


def test_activations_beyond_fp16_are_refused(small_sources: dict[str, StageContext]) -> None:
    loud = replace(small_sources["vision"], amax={"layers.1.mlp.fc2": 7e4})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.fc2 reads numbers up to 70000\.0, above fp16's"):
        TensorRT("fp16")(loud)
