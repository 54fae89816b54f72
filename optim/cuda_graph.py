"""CUDA graphs: a stage captured once for each shape of its inputs, and replayed.

A replay issues all kernels of a stage in one launch, so a stage that is bound by launches from Python becomes
bound by its kernels. Denoise is captured as the whole K-step loop; what depends on t alone is computed before
(`optim.rewrite.prepared`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from optim.base import Args, Backend, CountedStage, StageContext
from optim.core.engines import serve
from optim.core.requirements import require_cuda, require_warmup
from optim.rewrite.prepared import prepare

TOLERANCE = 1e-3  # the same kernels; cuBLAS may split a sum in another way with another workspace


class Recorder(Protocol):
    """Remembers what a function does to memory and does it again."""

    def record(self, function: Callable[[], Any]) -> Any:
        """Run the function and return its outputs, which `replay` writes to from then on."""
        ...

    def replay(self) -> None:
        """Do it again."""
        ...


class CudaRecorder:
    """A CUDA graph.

    Args:
        warmup: runs before the capture, in which libraries choose kernels and allocate workspaces.
        pool: memory shared with other graphs of which only one is replayed at a time.
    """

    def __init__(self, warmup: int = 3, pool: Any = None) -> None:
        self._warmup = warmup
        self._pool = pool

    def record(self, function: Callable[[], Any]) -> Any:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self._warmup):
                function()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=self._pool):
            return function()

    def replay(self) -> None:
        self._graph.replay()


class Captured:
    """A function of tensors that runs as a recording on buffers of its own.

    Attributes:
        captures: how often it was recorded.

    Non-obvious behaviors:
        The returned tensors are the recording's buffers: the next call overwrites them, so clone what must
        outlive it. Inputs are copied into buffers; the caller's tensors are free after the call. Whatever the
        function reads besides its arguments (weights) is read where it lay at the capture: after replacing
        such a tensor, call `recapture`. Shapes are the caller's to check (`optim.core.engines`).
    """

    def __init__(self, function: Callable[..., Any], args: Args, recorder: Recorder) -> None:
        self._function = function
        self._inputs = tuple(None if arg is None else arg.clone() for arg in args)
        self._recorder = recorder
        self.captures = 0
        self.recapture()

    @torch.no_grad()
    def recapture(self) -> None:
        """Record the function anew."""
        self._outputs = self._recorder.record(lambda: self._function(*self._inputs))
        self.captures += 1

    def __call__(self, *args: Tensor | None) -> Any:
        for buffer, arg in zip(self._inputs, args, strict=True):
            if buffer is not None and arg is not None:
                buffer.copy_(arg)
        self._recorder.replay()
        return self._outputs


def capture(function: Callable[..., Any], args: Args, *, warmup: int = 3, pool: Any = None) -> Captured:
    """Capture `function` in a CUDA graph for arguments like `args`."""
    return Captured(function, args, CudaRecorder(warmup, pool))


def capture_each(function: Callable[..., Any], *, warmup: int) -> Callable[[Args], Captured]:
    """Make a builder that captures `function` for given arguments; all of its graphs share their memory."""
    pool = torch.cuda.graph_pool_handle()
    return lambda args: capture(function, args, warmup=warmup, pool=pool)


@dataclass(frozen=True)
class CudaGraph(Backend):
    """Capture a stage and replay it; its kernels are eager PyTorch's.

    Attributes:
        warmup: runs before the capture.

    Raises:
        ValueError: `warmup` is below 1.
    """

    warmup: int = 3
    jacobians: ClassVar[tuple[str, ...]] = ("identity",)

    def __post_init__(self) -> None:
        require_warmup(self.warmup)

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Raise CannotRun without an NVIDIA GPU."""
        require_cuda(name, device)

    def __call__(self, source: StageContext) -> CountedStage:
        """Capture a graph for each combination of shapes; they share their memory."""
        return serve(
            source,
            "cuda_graph",
            capture_each(prepare(source.stage), warmup=self.warmup),
            tolerance=TOLERANCE,
        )
