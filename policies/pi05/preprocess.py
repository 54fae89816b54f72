"""Preprocessing: observations in, the tensors of one inference out, in full or lean form.

B batch, N camera slots, H W C image height, width, channels, T prompt tokens.

Full form: what openpi computes, masked cameras and padded prompts included. Lean form: only what is real;
exact, because masked tokens take no position and are invisible as keys.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from policies.base import Observation
from policies.pi05.dims import FORMS, Pi05Dims
from policies.pi05.norm_stats import STATE_DIM, Normalizer
from policies.pi05.prompt import PromptTokenizer

Frames = Sequence[Sequence[NDArray[np.uint8]]]
"""A batch: for each observation its images (H, W, C), all of one size."""
LoadImages = Callable[[Frames, int, torch.device], Tensor]
PrepareImages = Callable[[Tensor, int], Tensor]
"""frames_BNHWC, uint8, and the network's image size, to images_BNCHW, float32 in [-1, 1]."""
# which image of an observation feeds which slot (openpi policies/libero_policy.py)
CAMERA_SOURCES = {"base_0_rgb": "agentview_image", "left_wrist_0_rgb": "robot0_eye_in_hand_image"}


@dataclass(frozen=True)
class ModelInputs:
    """The stages' inputs."""

    images_BNCHW: Tensor  # float32 in [-1, 1]
    image_mask_BN: Tensor | None  # False for a slot without a camera; None in the lean form
    tokens_BT: Tensor  # int64
    token_mask_BT: Tensor | None  # False for padding; None if no prompt is padded


def prepare_images(frames_BNHWC: Tensor, size: int) -> Tensor:
    """Turn uint8 frames into images_BNCHW, float32 in [-1, 1]: openpi's way."""
    return normalise_pixels(resize_with_pad(frames_BNHWC, size))


def prepare_images_like_lerobot(frames_BNHWC: Tensor, size: int) -> Tensor:
    """Turn uint8 frames into images_BNCHW, float32 in [-1, 1]: lerobot's way."""
    return normalise_pixels(resize_like_lerobot(frames_BNHWC, size))


def load_images(
    frames: Frames, size: int, device: torch.device, prepare: PrepareImages = prepare_images
) -> Tensor:
    """Prepare frames on the host as images_BNCHW on `device`."""
    return prepare(torch.from_numpy(np.array(frames)).to(device), size)


def resize_with_pad(images_BNHWC: Tensor, size: int) -> Tensor:
    """Resize antialiased bilinear, centred on black: float32 (B, N, C, size, size), whole levels 0 to 255.

    Within one level of openpi's PIL path (openpi_client/image_tools.py), which rounds between its two passes.
    """
    images_BNCHW = images_BNHWC.permute(0, 1, 4, 2, 3).float()
    return _resize(images_BNCHW, size, antialias=True, finish=lambda levels: levels.round().clamp(0.0, 255.0))


def resize_like_lerobot(images_BNHWC: Tensor, size: int) -> Tensor:
    """Resize bilinear, centred on black, not antialiased nor rounded: float32 levels (B, N, C, size, size).

    lerobot's `resize_with_pad_torch` (policies/common/vla_utils.py), which works on levels divided by 255.
    """
    images_BNCHW = images_BNHWC.permute(0, 1, 4, 2, 3).float() / 255.0
    return _resize(images_BNCHW, size, antialias=False, finish=lambda levels: levels.clamp(0.0, 1.0)) * 255.0


def _resize(
    images_BNCHW: Tensor, size: int, *, antialias: bool, finish: Callable[[Tensor], Tensor]
) -> Tensor:
    height, width = images_BNCHW.shape[-2:]
    if (height, width) == (size, size):
        return images_BNCHW.contiguous()
    ratio = max(height, width) / size
    inner = (int(height / ratio), int(width / ratio))
    resized = F.interpolate(
        images_BNCHW.flatten(0, 1), inner, mode="bilinear", align_corners=False, antialias=antialias
    )
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    padding = (left, size - inner[1] - left, top, size - inner[0] - top)
    return F.pad(finish(resized), padding).unflatten(0, images_BNCHW.shape[:2])


def normalise_pixels(levels: Tensor) -> Tensor:
    """Map 0..255 to -1..1."""
    return levels / 255.0 * 2.0 - 1.0


@dataclass(frozen=True)
class Preprocess:
    """Turns observations into `ModelInputs` on `device`.

    Attributes:
        state: normaliser of the state, or None for the prompt format without state.
        state_prompt_dims: how many numbers of state the prompt carries; the normalised state is padded with
            zeros (lerobot pads to 32 before it turns them into words, openpi does not pad).
        prompt_multiple: lean prompts are padded to a multiple of so many tokens and the padding is masked, so
            that a few engines serve prompts of many lengths; 1 pads none and masks none.
        prepare_images: resizes and scales frames as these weights were trained: openpi's way or lerobot's.
        load_images: does so for frames on the host, in place of the function of that name; it may return a
            buffer that its next call overwrites.

    Raises:
        ValueError: a slot that is not masked has no source.
    """

    dims: Pi05Dims
    tokenizer: PromptTokenizer
    state: Normalizer | None
    state_prompt_dims: int
    device: torch.device
    prompt_multiple: int = 1
    prepare_images: PrepareImages = field(default=prepare_images)
    load_images: LoadImages | None = None
    sources: Mapping[str, str] = field(default_factory=lambda: dict(CAMERA_SOURCES))  # slot to image

    def __post_init__(self) -> None:
        for slot in self.dims.live_cameras:
            if slot not in self.sources:
                raise ValueError(
                    f"camera slot {slot!r} has no source among {dict(self.sources)}; "
                    "name one, or list the slot in masked_cameras"
                )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Images that an observation must have."""
        return tuple(self.sources[slot] for slot in self.dims.live_cameras)

    def __call__(self, observations: Sequence[Observation], form: str) -> ModelInputs:
        """Prepare one batch.

        Raises KeyError where an observation lacks a camera; ValueError where an image is not uint8
        (height, width, 3), images differ in size, or a prompt is too long.
        """
        rows = [self.frames(observation) for observation in observations]
        shapes = {image.shape for row in rows for image in row}
        if len(shapes) > 1:
            raise ValueError(
                f"images of one batch must have one size, got {sorted(shapes)}; render them alike"
            )
        size = self.dims.image_size
        if self.load_images is not None:
            images_BNCHW = self.load_images(rows, size, self.device)
        else:
            images_BNCHW = load_images(rows, size, self.device, self.prepare_images)
        prompts = [self.prompt(observation) for observation in observations]
        return assemble(images_BNCHW, prompts, self.dims, form, self.prompt_multiple)

    def frames(self, observation: Observation) -> list[NDArray[np.uint8]]:
        """The observation's images in the order of the network's slots."""
        return [self._image(observation, name) for name in self.cameras]

    def prompt_length(self, observation: Observation, form: str) -> int:
        """Count the prompt tokens that the stages get for an observation, padding included."""
        if form == "full":
            return self.dims.max_token_len
        return padded_length(len(self.prompt(observation)), self.prompt_multiple)

    def _image(self, observation: Observation, name: str) -> NDArray[np.uint8]:
        if name not in observation.images:
            raise KeyError(
                f"observation has no image {name!r}, it has {sorted(observation.images)}; "
                f"render the cameras that the policy asks for: {self.cameras}"
            )
        image = observation.images[name]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image {name!r} must be uint8 (height, width, 3), got {image.dtype} {image.shape}"
            )
        return image

    def prompt(self, observation: Observation) -> list[int]:
        """Encode an observation's prompt, unpadded."""
        state = None
        if self.state is not None:
            state = np.zeros(self.state_prompt_dims)
            state[:STATE_DIM] = self.state.normalize(observation.state)
        return self.tokenizer.encode(observation.instruction, state, self.dims.max_token_len)


def assemble(
    images_BNCHW: Tensor,
    prompts: Sequence[Sequence[int]],
    dims: Pi05Dims,
    form: str,
    prompt_multiple: int = 1,
) -> ModelInputs:
    """Build the inputs from `prepare_images` of the live cameras, in slot order, and unpadded prompts.

    `Preprocess` explains `prompt_multiple`. Raises ValueError where `form` is unknown.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    device = images_BNCHW.device
    lengths = [len(prompt) for prompt in prompts]
    width = dims.max_token_len if form == "full" else padded_length(max(lengths), prompt_multiple)
    masked = form == "full" or prompt_multiple > 1 or min(lengths) < width
    tokens_BT, token_mask_BT = _token_tensors(tuple(map(tuple, prompts)), width, masked, device)
    if form == "lean":
        return ModelInputs(images_BNCHW, None, tokens_BT, token_mask_BT)
    black = torch.full_like(images_BNCHW[:, 0], -1.0)
    live = dict(zip(dims.live_cameras, images_BNCHW.unbind(1), strict=True))
    slots = torch.stack([live.get(slot, black) for slot in dims.cameras], dim=1)
    present = tuple(slot in live for slot in dims.cameras)
    return ModelInputs(slots, _image_mask(present, len(prompts), device), tokens_BT, token_mask_BT)


@functools.lru_cache(maxsize=64)
def _token_tensors(
    prompts: tuple[tuple[int, ...], ...], width: int, masked: bool, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """tokens_BT and token_mask_BT; nobody writes to them.

    Cached, because an episode's prompt rarely changes and each tensor costs a copy to the device.
    """
    tokens = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
    mask = [[i < len(prompt) for i in range(width)] for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device) if masked else None


@functools.lru_cache(maxsize=64)
def _image_mask(present: tuple[bool, ...], batch: int, device: torch.device) -> Tensor:
    return torch.tensor([present] * batch, device=device)


def padded_length(tokens: int, multiple: int) -> int:
    """Round `tokens` up to a multiple."""
    return -(-tokens // multiple) * multiple
