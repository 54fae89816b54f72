"""What a backend may ask of the machine."""

import importlib.util

import torch


class WrongMachine(RuntimeError):
    """The machine lacks what a backend needs; another backend is the way out.

    Attributes:
        reason: the message without the way out: the same for every stage; way_out: the rest of it.
    """

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(f"{reason}; {way_out}")
        self.reason, self.way_out = reason, way_out


def no_gpu(device: torch.device, way_out: str) -> WrongMachine:
    """Return the error for what needs an NVIDIA GPU where the policy runs on another device."""
    return WrongMachine(f"it needs an NVIDIA GPU, got policy.device={device}", way_out)


def require_cuda(
    name: str, device: torch.device, capability: tuple[int, int] = (0, 0), reason: str = ""
) -> None:
    """Raise WrongMachine unless the policy runs on an NVIDIA GPU of at least this compute capability.

    Args:
        name: of the stage.
        reason: what needs the capability.
    """
    if device.type != "cuda":
        raise no_gpu(device, f"choose optim/{name}=eager")
    available = torch.cuda.get_device_capability(device)
    if available < capability:
        need, have = (".".join(map(str, version)) for version in (capability, available))
        raise WrongMachine(
            f"{reason} needs compute capability {need}, {torch.cuda.get_device_name(device)} has {have}",
            f"choose another backend for optim/{name}",
        )


def require_dtype(dtype: torch.dtype, wanted: torch.dtype) -> None:
    """Raise RuntimeError unless the policy runs in this precision."""
    if dtype != wanted:
        need, got = (str(kind).removeprefix("torch.") for kind in (wanted, dtype))
        raise RuntimeError(f"it needs policy.precision={need}, got {got}; set policy.precision={need}")


def require_warmup(warmup: int) -> None:
    """Raise ValueError for a capture without a run before it."""
    if warmup < 1:
        raise ValueError(f"warmup must be >= 1, got {warmup}: libraries choose their kernels in it")


def require_triton() -> None:
    """Raise RuntimeError without Triton."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("it needs Triton, which comes with torch's CUDA builds; install one of those")
