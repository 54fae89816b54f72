"""Demonstrations in device memory: growing while they are recorded, sampled at random, lightly augmented.

B batch, N cameras, H W C image height, width, channels, T prompt tokens, K horizon, J 7 action dims.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from policies.pi05.dims import Pi05Dims
from policies.pi05.preprocess import normalise_pixels
from policies.pi05.prompt import PromptTokenizer
from policies.reference.demos import Demo, load_demo

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
    truths_BX: Tensor  # float32 (B, 9), metres; see `policies.reference.demos.truth`


class DemoPool:
    """All successful demonstrations of a folder, their images on `device`.

    `capacity` is in moments, 0.3 MB each; `instructions` are indexed by task id.
    """

    def __init__(
        self,
        folder: Path,
        dims: Pi05Dims,
        tokenizer: PromptTokenizer,
        instructions: Sequence[str],
        capacity: int,
        device: torch.device,
    ) -> None:
        self.folder = folder
        self.device = device
        self.dims = dims
        size = dims.image_size
        self._images = torch.empty(
            (capacity, len(dims.live_cameras), size, size, 3), dtype=torch.uint8, device=device
        )
        self._columns: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self.num_moments = 0
        self.num_episodes = 0
        prompts = [tokenizer.encode(text, None, dims.max_token_len) for text in instructions]
        width = max(map(len, prompts))
        self._tokens = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)
        self._token_mask = torch.tensor([[i < len(p) for i in range(width)] for p in prompts], device=device)

    def grow(self) -> int:
        """Read new episodes until the capacity ends; return how many were added."""
        new = sorted(path for path in self.folder.glob("*.npz") if path.name not in self._seen)
        with ThreadPoolExecutor(8) as pool:
            demos = list(pool.map(load_demo, new))
        self._seen.update(path.name for path in new)
        added = 0
        for demo in demos:
            count = len(demo.steps_F)
            if not demo.success or count == 0 or self.num_moments + count > len(self._images):
                continue
            rows = slice(self.num_moments, self.num_moments + count)
            self._images[rows] = torch.from_numpy(demo.images_FNHWC).to(self.device)
            for name, values in self._rows(demo).items():
                column = torch.from_numpy(values).to(self.device)
                held = self._columns.get(name)
                self._columns[name] = column if held is None else torch.cat((held, column))
            self.num_moments += count
            self.num_episodes += 1
            added += 1
        return added

    def column(self, name: str) -> NDArray[np.float32]:
        """Copy one to the host: task, states, actions (moments, horizon, 7), num_labels or truths."""
        return self._columns[name].cpu().numpy()

    def sample(self, batch: int, generator: torch.Generator) -> Batch:
        """Draw a batch; every moment is equally likely."""
        index = torch.randint(self.num_moments, (batch,), generator=generator, device=self.device)
        task = self._columns["task"][index]
        steps = torch.arange(self.dims.action_horizon, device=self.device)
        return Batch(
            images_BNCHW=augment(self._images[index], generator),
            tokens_BT=self._tokens[task],
            token_mask_BT=self._token_mask[task],
            actions_BKJ=self._columns["actions"][index],
            labelled_BK=steps < self._columns["num_labels"][index][:, None],
            truths_BX=self._columns["truths"][index],
        )

    def _rows(self, demo: Demo) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        count, horizon = len(demo.steps_F), self.dims.action_horizon
        ahead = np.minimum(demo.steps_F[:, None] + np.arange(horizon), len(demo.actions_TJ) - 1)
        return {
            "task": np.full(count, demo.task_id, np.int64),
            "num_labels": demo.num_labels_F,
            "states": demo.states_FS.astype(np.float32),
            "actions": demo.actions_TJ[ahead].astype(np.float32),
            "truths": demo.truths_FX.astype(np.float32),
        }


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
