"""What a backend may ask of the machine."""

import importlib.util

import torch

from optim.base import CannotRun, Reason

BF16_CAPABILITY = (8, 0)  # Ampere
BF16_UNITS = "bfloat16 in matrix units"


def no_gpu(device: torch.device, way_out: str) -> Reason:
    """Word what needs an NVIDIA GPU where the policy runs on another device."""
    return Reason(f"it needs an NVIDIA GPU, got policy.device={device}", way_out)


def require_cuda(
    name: str, device: torch.device, capability: tuple[int, int] = (0, 0), reason: str = ""
) -> None:
    """Raise CannotRun unless the policy runs on an NVIDIA GPU of at least this compute capability.

    Args:
        name: of the stage.
        reason: what needs the capability.
    """
    if device.type != "cuda":
        raise _cannot_run(name, no_gpu(device, f"choose optim/{name}=eager"))
    available = torch.cuda.get_device_capability(device)
    if available < capability:
        need, have = (".".join(map(str, version)) for version in (capability, available))
        text = f"{reason} needs compute capability {need}, {torch.cuda.get_device_name(device)} has {have}"
        raise _cannot_run(name, Reason(text, f"choose another backend for optim/{name}"))


def require_dtype(dtype: torch.dtype, wanted: torch.dtype) -> None:
    """Raise RuntimeError unless the policy runs in this precision."""
    if dtype != wanted:
        need, got = (str(kind).removeprefix("torch.") for kind in (wanted, dtype))
        raise RuntimeError(f"it needs policy.precision={need}, got {got}; set policy.precision={need}")


def require_compiler(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise where torch.compile makes no kernels for the policy's GPU; on a CPU it needs nothing of us.

    Raises:
        RuntimeError: there is no Triton.
        CannotRun: the GPU has no matrix instructions for bfloat16, which the policy's precision asks for.
    """
    if device.type != "cuda":
        return
    if dtype == torch.bfloat16:
        require_cuda(name, device, BF16_CAPABILITY, BF16_UNITS)
    require_triton()


def require_warmup(warmup: int) -> None:
    """Raise ValueError for a capture without a run before it."""
    if warmup < 1:
        raise ValueError(f"warmup must be >= 1, got {warmup}: libraries choose their kernels in it")


def require_triton() -> None:
    """Raise RuntimeError without Triton."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("it needs Triton, which comes with torch's CUDA builds; install one of those")


def _cannot_run(name: str, reason: Reason) -> CannotRun:
    return CannotRun(str(reason), {name: reason})
