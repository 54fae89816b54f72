"""Images, masks and tokens of one inference."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from policies.base import Observation, Request
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.preprocess import assemble, normalise_pixels, prepare_images, resize_with_pad


def _pil_resize_with_pad(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    ratio = max(height, width) / size
    inner_width, inner_height = int(width / ratio), int(height / ratio)
    canvas = Image.new("RGB", (size, size), 0)
    resized = Image.fromarray(image).resize((inner_width, inner_height), resample=Image.Resampling.BILINEAR)
    canvas.paste(resized, ((size - inner_width) // 2, (size - inner_height) // 2))
    return np.asarray(canvas)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (224, 224), (480, 640), (101, 57), (128, 128)])
def test_resize_is_within_one_level_of_pil(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    levels = resize_with_pad(torch.from_numpy(image)[None, None], 224)
    assert levels.shape == (1, 1, 3, 224, 224)
    resized = levels[0, 0].permute(1, 2, 0).numpy()
    assert np.abs(resized - _pil_resize_with_pad(image, 224).astype(np.float32)).max() <= 1.0
    assert (resized == resized.round()).all()


def test_pixels_span_minus_one_to_one() -> None:
    assert normalise_pixels(torch.tensor([0.0, 127.5, 255.0])).tolist() == [-1.0, 0.0, 1.0]


def test_images_rotated_by_negative_strides_keep_their_rotation(
    small: Checkpoint, request_of: Callable[..., Request]
) -> None:
    observation = request_of(0).observation
    rotated = replace(observation, images={k: v[::-1, ::-1] for k, v in observation.images.items()})
    images = small.preprocess()([observation, rotated], "lean").images_BNCHW
    torch.testing.assert_close(images[1], images[0].flip(-1, -2), rtol=0, atol=2.001 / 255)


def test_missing_camera_is_a_key_error_that_names_it(
    small: Checkpoint, request_of: Callable[..., Request]
) -> None:
    observation = request_of(0).observation
    lacking = replace(observation, images={"agentview_image": observation.images["agentview_image"]})
    with pytest.raises(KeyError, match=r"no image 'robot0_eye_in_hand_image', it has .*agentview_image"):
        small.preprocess()([lacking], "lean")


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.uint8)]
)
def test_image_that_is_not_uint8_rgb_is_refused(small: Checkpoint, image: NDArray[np.uint8]) -> None:
    images = {"agentview_image": image, "robot0_eye_in_hand_image": image}
    with pytest.raises(ValueError, match="image 'agentview_image' must be uint8"):
        small.preprocess()([Observation(images, np.zeros(8), "x")], "lean")


def test_images_of_two_sizes_are_refused(small: Checkpoint) -> None:
    images = {
        "agentview_image": np.zeros((256, 256, 3), np.uint8),
        "robot0_eye_in_hand_image": np.zeros((128, 128, 3), np.uint8),
    }
    with pytest.raises(ValueError, match="must have one size"):
        small.preprocess()([Observation(images, np.zeros(8), "x")], "lean")


def test_full_form_masks_the_absent_camera_and_the_padding(small: Checkpoint) -> None:
    images = torch.full((1, 2, 224, 224, 3), 255, dtype=torch.uint8)
    inputs = assemble(prepare_images(images, 224), [[2, 7, 9]], small.dims, "full")
    assert inputs.images_BNCHW.shape == (1, 3, 3, 224, 224)
    assert inputs.images_BNCHW[:, :2].unique().tolist() == [1.0]
    assert inputs.images_BNCHW[:, 2].unique().tolist() == [-1.0]
    assert inputs.image_mask_BN is not None
    assert inputs.image_mask_BN.tolist() == [[True, True, False]]
    assert inputs.tokens_BT.tolist() == [[2, 7, 9] + [0] * 197]
    assert inputs.token_mask_BT is not None
    assert inputs.token_mask_BT.tolist() == [[True] * 3 + [False] * 197]


def test_lean_form_has_only_real_cameras_and_tokens(small: Checkpoint) -> None:
    images = torch.zeros((2, 2, 224, 224, 3), dtype=torch.uint8)
    alike = assemble(prepare_images(images, 224), [[2, 7, 9], [2, 8, 9]], small.dims, "lean")
    assert alike.images_BNCHW.shape == (2, 2, 3, 224, 224)
    assert (alike.image_mask_BN, alike.token_mask_BT) == (None, None)
    assert alike.tokens_BT.tolist() == [[2, 7, 9], [2, 8, 9]]
    mixed = assemble(prepare_images(images, 224), [[2, 7, 9], [2]], small.dims, "lean")
    assert mixed.tokens_BT.tolist() == [[2, 7, 9], [2, 0, 0]]
    assert mixed.token_mask_BT is not None
    assert mixed.token_mask_BT.tolist() == [[True] * 3, [True, False, False]]


def test_unknown_form_is_refused(small: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"form must be one of .*, got 'thin'"):
        assemble(torch.zeros((1, 2, 3, 224, 224)), [[2]], small.dims, "thin")


def test_live_slot_without_a_source_is_refused(small: Checkpoint) -> None:
    with pytest.raises(ValueError, match="camera slot 'left_wrist_0_rgb' has no source"):
        replace(small.preprocess(), sources={"base_0_rgb": "agentview_image"})
