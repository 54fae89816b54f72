"""Devices by name, as options and command lines give them."""

import torch


def find_device(name: str, key: str) -> torch.device:
    """Resolve a device's name; `auto` is CUDA where there is a GPU, else the CPU.

    Raises ValueError, which names the option `key`, for no device or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{key} must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{key} must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{key}={name} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
            f"use {key}=cpu or auto"
        )
    return device
