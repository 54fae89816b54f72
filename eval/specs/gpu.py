"""torch's current GPU, which a policy on `cuda:N` sets, for a process that has other work too."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def current_gpu() -> int | None:
    """The number of torch's current GPU; None where torch, or CUDA in it, has not begun."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    number: int = torch.cuda.current_device()
    return number


@contextmanager
def own_gpu(number: int | None = None) -> Iterator[None]:
    """Leave the current GPU as it was; inside, it is `number`, if one is given.

    Where CUDA begins inside, GPU 0 is current at the end, as in a process that chose none.
    """
    before = current_gpu()
    if number is not None and number != before:
        _choose(number)
    try:
        yield
    finally:
        if current_gpu() not in (None, before):
            _choose(before or 0)


def _choose(number: int) -> None:
    import torch

    torch.cuda.set_device(number)
