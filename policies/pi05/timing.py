"""Stage times of one inference: CUDA events on a GPU, the host's clock on a CPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageTimer:
    """Times named stages on one device: `with timer("vision"):`.

    On a GPU nothing waits until `read_ms`, which waits once, for the last stage.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host_ms: dict[str, float] = {}
        self._events: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)
            start.record(stream)
            yield
            end.record(stream)
            self._events[stage] = (start, end)
        else:
            began = time.perf_counter()
            yield
            self._host_ms[stage] = (time.perf_counter() - began) * 1e3

    def read_ms(self) -> dict[str, float]:
        """Stage to milliseconds, in the order in which they ran."""
        if self._device.type != "cuda":
            return dict(self._host_ms)
        for _, end in list(self._events.values())[-1:]:
            end.synchronize()
        return {stage: start.elapsed_time(end) for stage, (start, end) in self._events.items()}
