"""Images through a page-locked buffer and a CUDA graph are those of the eager path."""

import numpy as np
import pytest
import torch

from optim.graphed_images import GraphedImages
from policies.pi05.preprocess import load_images

pytestmark = pytest.mark.gpu


def test_graphed_images_are_those_of_the_eager_path_for_every_shape_and_call() -> None:
    device, rng, graphed = torch.device("cuda"), np.random.default_rng(0), GraphedImages()
    for shape in [(1, 2, 256, 256, 3), (2, 2, 256, 256, 3), (1, 2, 224, 224, 3), (1, 2, 256, 256, 3)]:
        for _ in range(2):
            frames = rng.integers(0, 256, shape, dtype=np.uint8)
            assert torch.equal(graphed(frames, 224, device), load_images(frames, 224, device))
