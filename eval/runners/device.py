"""Tell a lost GPU from an error of one request: CUDA's own errors stay, whoever asks next."""

import sys

LOST = "CUDA error"  # with which torch's RuntimeError begins where it has no type of its own for it


def is_device_lost(error: BaseException) -> bool:
    """Whether no later call on this GPU can succeed in this process.

    The types of the error and of its causes decide, and no text that a client may have written. Torch is not
    imported for it: where nobody has, nobody lost its device.
    """
    torch = sys.modules.get("torch")
    seen: BaseException | None = error
    while torch is not None and seen is not None:
        if isinstance(seen, torch.cuda.OutOfMemoryError | OSError):
            return False  # an OSError may tell of another machine's
        if isinstance(seen, torch.AcceleratorError):
            return True
        if type(seen) is RuntimeError and str(seen).startswith(LOST):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
