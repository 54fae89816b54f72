"""Images through a page-locked buffer and a CUDA graph are those of the eager path."""

import numpy as np
import pytest
import torch

from optim.base import StageMismatch
from optim.images import GraphedImages
from policies.pi05.preprocess import PrepareImages, load_images, prepare_images, prepare_images_like_lerobot

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("prepare", [prepare_images, prepare_images_like_lerobot])
def test_graphed_images_are_those_of_the_eager_path_and_other_shapes_are_refused(
    prepare: PrepareImages,
) -> None:
    device, rng = torch.device("cuda"), np.random.default_rng(0)
    shapes = [(1, 2, 256, 256, 3), (2, 2, 256, 256, 3), (1, 2, 224, 224, 3)]
    graphed = GraphedImages(
        [list(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes], 224, device, prepare
    )
    for shape in [*shapes, *shapes]:
        frames = list(rng.integers(0, 256, shape, dtype=np.uint8))
        assert torch.equal(graphed(frames, 224, device), load_images(frames, 224, device, prepare))
    with pytest.raises(StageMismatch, match=r"frames are \(1, 3, 256, 256, 3\)"):
        graphed(list(np.zeros((1, 3, 256, 256, 3), dtype=np.uint8)), 224, device)
