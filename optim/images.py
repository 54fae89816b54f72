"""Image preprocessing as a CUDA graph: one copy of uint8 frames to the GPU, then resize and scaling there.

B batch, N cameras.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optim.base import StageMismatch
from optim.cuda_graph import Captured, capture
from policies.pi05.preprocess import Frames, PrepareImages, load_images


class GraphedImages:
    """`policies.pi05.preprocess.load_images` with a page-locked buffer and a CUDA graph for each shape.

    Args:
        examples: frames of every shape that will come.
        size: of the network's images.
        device: the GPU.
        prepare: the checkpoint's own resize and scaling.

    Raises:
        RuntimeError: the graph gives other images than the eager path.

    Non-obvious behaviors:
        The returned images are the graph's buffer, and the frames' buffer is read by the GPU until the
        inference has ended: the next call overwrites both.
    """

    def __init__(
        self, examples: Iterable[Frames], size: int, device: torch.device, prepare: PrepareImages
    ) -> None:
        self._buffers: dict[tuple[int, ...], tuple[NDArray[np.uint8], Captured]] = {}
        for frames in examples:
            if _shape(frames) not in self._buffers:
                self._buffers[_shape(frames)] = _capture(_shape(frames), size, device, prepare)
            if not torch.equal(self(frames, size, device), load_images(frames, size, device, prepare)):
                raise RuntimeError(
                    "policy.images=cuda_graph gives other images than eager; use policy.images=eager"
                )

    def __call__(self, frames: Frames, size: int, device: torch.device) -> Tensor:
        """Load images_BNCHW, float32 in [-1, 1], on the device; size and device are those of the capture.

        Raises:
            StageMismatch: frames of a shape that was not among the examples.
        """
        shape = _shape(frames)
        if shape not in self._buffers:
            raise StageMismatch(
                f"frames are {shape}, policy.images=cuda_graph was captured for "
                f"{sorted(self._buffers)}; use policy.images=eager"
            )
        host_BNHWC, captured = self._buffers[shape]
        for host_NHWC, row in zip(host_BNHWC, frames, strict=True):
            np.stack(row, out=host_NHWC)  # torch would wake a pool of threads for it
        images: Tensor = captured()
        return images


def _shape(frames: Frames) -> tuple[int, ...]:
    return len(frames), len(frames[0]), *frames[0][0].shape


def _capture(
    shape: tuple[int, ...], size: int, device: torch.device, prepare: PrepareImages
) -> tuple[NDArray[np.uint8], Captured]:
    host = torch.zeros(shape, dtype=torch.uint8).pin_memory()

    def load() -> Tensor:
        return prepare(host.to(device, non_blocking=True), size)

    return host.numpy(), capture(load, ())
