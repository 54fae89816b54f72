"""The EGL device that draws: the GPU that CUDA uses, whatever CUDA_VISIBLE_DEVICES calls it.

Non-obvious behaviors:
    * robosuite takes CUDA_VISIBLE_DEVICES for the number of an EGL device. EGL counts all GPUs of the
      machine, CUDA those that are visible, and a UUID is no number at all. `for_robosuite` hides it.
    * NVIDIA's EGL says of each device which CUDA device it is (EGL_NV_device_cuda), and follows
      CUDA_VISIBLE_DEVICES in all its forms. Where no device says so, as with Mesa or hidden GPUs, the first
      one draws.
"""

import contextlib
import ctypes
import ctypes.util
import os
from collections.abc import Iterator

from eval.sim.errors import SimulatorError

CUDA_DEVICE_NV = 0x323A  # EGL_NV_device_cuda
MOST_DEVICES = 64
VARIABLES = ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID")

Attribute = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_ssize_t))
Devices = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
)


def cuda_ordinals() -> list[int | None]:
    """For each EGL device, the number that CUDA gives it in this process; None where it gives none.

    Raises OSError where EGL cannot be loaded.
    """
    egl = ctypes.CDLL(ctypes.util.find_library("EGL"))
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglQueryDeviceAttribEXT")]
    if None in addresses:
        return []
    query_devices, query_attribute = Devices(addresses[0]), Attribute(addresses[1])
    devices, count = (ctypes.c_void_p * MOST_DEVICES)(), ctypes.c_int()
    query_devices(MOST_DEVICES, devices, ctypes.byref(count))
    ordinals: list[int | None] = []
    for device in devices[: count.value]:
        ordinal = ctypes.c_ssize_t()
        known = query_attribute(device, CUDA_DEVICE_NV, ctypes.byref(ordinal))
        ordinals.append(ordinal.value if known else None)
    return ordinals


def choose_device(ordinals: list[int | None], gpu_index: int = 0) -> int:
    """Choose an EGL device: `MUJOCO_EGL_DEVICE_ID`, else CUDA's device `gpu_index`, else the first.

    Raises SimulatorError for a `MUJOCO_EGL_DEVICE_ID` that is no device.
    """
    asked = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if asked is not None:
        if not asked.isdecimal() or int(asked) >= max(len(ordinals), 1):
            raise SimulatorError(
                f"MUJOCO_EGL_DEVICE_ID must be 0 to {max(len(ordinals), 1) - 1}, the EGL devices of this "
                f"machine, got {asked!r}; unset it to draw with the GPU in use"
            )
        return int(asked)
    return ordinals.index(gpu_index) if gpu_index in ordinals else 0


@contextlib.contextmanager
def for_robosuite(device: int) -> Iterator[None]:
    """Show robosuite one EGL device and no CUDA_VISIBLE_DEVICES, while it is imported and opens EGL."""
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    os.environ["MUJOCO_EGL_DEVICE_ID"] = str(device)
    try:
        yield
    finally:
        del os.environ["MUJOCO_EGL_DEVICE_ID"]
        os.environ.update({name: value for name, value in before.items() if value is not None})
