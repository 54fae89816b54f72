"""Demonstrations in device memory: growing while they are recorded, sampled at random, lightly augmented.

B batch, N cameras, H W C image height, width, channels, T prompt tokens, K horizon, J 7 action dims.
"""

import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from policies.base import ACTION_DIM
from policies.pi05.dims import Pi05Dims
from policies.pi05.preprocess import normalise_pixels
from policies.pi05.prompt import PromptTokenizer
from policies.reference.demos import Demo, load_demo
from policies.reference.targets import NUM_TARGETS

SHIFT_PIXELS = 4
BRIGHTNESS, CONTRAST = 0.1, 0.15  # standard deviations, of the range -1 to 1


@dataclass(frozen=True)
class Batch:
    """One training batch."""

    images_BNCHW: Tensor  # float32 in [-1, 1], augmented
    tokens_BT: Tensor  # prompts, all padded to one length
    token_mask_BT: Tensor
    actions_BKJ: Tensor  # float32, in the simulator's units
    labelled_BK: Tensor  # whether the oracle itself took the action, undisturbed
    truths_BX: Tensor  # float32, metres, NaN where there is none; see `policies.reference.targets`


class DemoPool:
    """The successful demonstrations of a folder, or every `shards`-th of them, their images on `device`.

    `capacity` is in moments, 0.3 MB each; `instructions` are those of (suite, task id).

    Non-obvious behaviors:
        `keep_growing` reads new episodes in a thread, so that who samples need not wait for files. Rows are
        written before `num_moments` tells of them, on the stream that sampling uses.
    """

    def __init__(
        self,
        folder: Path,
        dims: Pi05Dims,
        tokenizer: PromptTokenizer,
        instructions: Mapping[tuple[str, int], str],
        capacity: int,
        device: torch.device,
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        self.folder = folder
        self.device = device
        self.dims = dims
        self.shard, self.shards = shard, shards
        self.error: BaseException | None = None  # of the growing thread
        size, horizon = dims.image_size, dims.action_horizon
        self._images = torch.empty(
            (capacity, len(dims.live_cameras), size, size, 3), dtype=torch.uint8, device=device
        )
        self._task = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._num_labels = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._actions = torch.zeros((capacity, horizon, ACTION_DIM), device=device)
        self._truths = torch.zeros((capacity, NUM_TARGETS), device=device)
        self._seen: set[str] = set()
        self._ended = threading.Event()
        self.num_moments = 0
        self.num_episodes = 0
        prompts = [tokenizer.encode(text, None, dims.max_token_len) for text in instructions.values()]
        width = max(map(len, prompts))
        self._index = {task: i for i, task in enumerate(instructions)}
        self._tokens = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)
        self._token_mask = torch.tensor([[i < len(p) for i in range(width)] for p in prompts], device=device)

    def grow(self) -> int:
        """Read new episodes until the capacity ends; return how many were added."""
        new = sorted(path for path in self.folder.glob("*.npz") if path.name not in self._seen)
        added = 0
        for path in new:
            if self._ended.is_set():
                break
            self._seen.add(path.name)
            if zlib.crc32(path.name.encode()) % self.shards == self.shard:
                added += self._add(load_demo(path))
        return added

    def keep_growing(self, every_s: float = 5.0) -> threading.Thread:
        """Grow in a thread until `stop`; what goes wrong there is kept in `error`."""

        def run() -> None:
            try:
                while not self._ended.wait(every_s):
                    self.grow()
            except Exception as error:  # noqa: BLE001 - the training raises it
                self.error = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        self._ended.set()

    def sample(self, batch: int, generator: torch.Generator) -> Batch:
        """Draw a batch; every moment is equally likely."""
        index = torch.randint(self.num_moments, (batch,), generator=generator, device=self.device)
        task = self._task[index]
        steps = torch.arange(self.dims.action_horizon, device=self.device)
        return Batch(
            images_BNCHW=augment(self._images[index], generator),
            tokens_BT=self._tokens[task],
            token_mask_BT=self._token_mask[task],
            actions_BKJ=self._actions[index],
            labelled_BK=steps < self._num_labels[index][:, None],
            truths_BX=self._truths[index],
        )

    def _add(self, demo: Demo) -> bool:
        count = len(demo.steps_F)
        if not demo.success or count == 0 or self.num_moments + count > len(self._images):
            return False
        rows = slice(self.num_moments, self.num_moments + count)
        self._images[rows] = torch.from_numpy(demo.images_FNHWC).to(self.device)
        self._task[rows] = self._index[demo.suite, demo.task_id]
        self._num_labels[rows] = torch.from_numpy(demo.num_labels_F).to(self.device)
        self._actions[rows] = torch.from_numpy(actions_ahead(demo, self.dims.action_horizon)).to(self.device)
        self._truths[rows] = torch.from_numpy(demo.truths_FX.astype(np.float32)).to(self.device)
        self.num_moments += count
        self.num_episodes += 1
        return True


def actions_ahead(demo: Demo, horizon: int) -> NDArray[np.float32]:
    """The actions that followed each moment (F, horizon, 7); past the end, the last one again."""
    ahead = np.minimum(demo.steps_F[:, None] + np.arange(horizon), len(demo.actions_TJ) - 1)
    return demo.actions_TJ[ahead].astype(np.float32)


def augment(images_BNHWC: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, brighten and change the contrast of each image: float32 (B, N, C, H, W) in [-1, 1]."""
    batch, cameras, height, width, _ = images_BNHWC.shape
    device = images_BNHWC.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) * 2 - 1

    shifts = (uniform(2, batch, cameras) * (SHIFT_PIXELS + 0.5)).round().long()
    rows = (torch.arange(height, device=device) + shifts[0, ..., None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + shifts[1, ..., None]).clamp(0, width - 1)
    b = torch.arange(batch, device=device)[:, None, None, None]
    n = torch.arange(cameras, device=device)[None, :, None, None]
    shifted = images_BNHWC[b, n, rows[..., None], columns[..., None, :]]
    pixels = normalise_pixels(shifted.permute(0, 1, 4, 2, 3).float())
    mean = pixels.mean(dim=(2, 3, 4), keepdim=True)
    contrast = 1.0 + CONTRAST * uniform(batch, cameras, 1, 1, 1) * 3**0.5
    brightness = BRIGHTNESS * uniform(batch, cameras, 1, 1, 1) * 3**0.5
    return ((pixels - mean) * contrast + mean + brightness).clamp(-1.0, 1.0)


def padded_actions(actions_BKJ: Tensor, action_dim: int) -> Tensor:
    """Append zeros for the dims that LIBERO does not have, (B, K, A)."""
    return F.pad(actions_BKJ, (0, action_dim - actions_BKJ.shape[-1]))
