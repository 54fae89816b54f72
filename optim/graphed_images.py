"""Image preprocessing as one CUDA graph: one copy of uint8 frames to the GPU, then resize and scaling there.

B batch, N cameras.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optim.cuda_graph import Captured, capture
from policies.pi05.preprocess import prepare_images


class GraphedImages:
    """`policies.pi05.preprocess.load_images` with a page-locked buffer and a CUDA graph for each shape.

    Non-obvious behaviors:
        A shape is captured at its first call, which therefore takes longer. The returned images are the
        graph's buffer, and the frames' buffer is read by the GPU until the inference has ended: the next call
        overwrites both.
    """

    def __init__(self) -> None:
        self._captured: dict[tuple[torch.Size, int], tuple[Tensor, Captured]] = {}

    def __call__(self, frames_BNHWC: NDArray[np.uint8], size: int, device: torch.device) -> Tensor:
        """Return images_BNCHW, float32 in [-1, 1], on `device`."""
        frames = torch.from_numpy(frames_BNHWC)
        key = (frames.shape, size)
        if key not in self._captured:
            self._captured[key] = self._capture(frames, size, device)
        host, captured = self._captured[key]
        host.copy_(frames)
        images: Tensor = captured()
        return images

    def _capture(self, frames: Tensor, size: int, device: torch.device) -> tuple[Tensor, Captured]:
        host = frames.clone().pin_memory()

        def load() -> Tensor:
            return prepare_images(host.to(device, non_blocking=True), size)

        return host, capture(load, ())
