"""Small policies, one for each way in which lerobot's differ."""

from collections import deque
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.utils import populate_queues

STATE, IMAGES, ACTION = "observation.state", "observation.images", "action"


class ChunkPolicy(nn.Module):
    """Like ACT: a chunk of one observation, and noise where the configuration has some."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if config.pretrained_backbone_weights is not None:
            raise OSError("no network")
        self.config = config
        views = len([key for key in config.image_features if "empty_camera" not in key])
        self.head = nn.Linear(config.n_obs_steps * (8 + 3 * views), config.chunk_size * 7)
        self.tied = self.head.weight
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig, strict: bool = False
    ) -> "ChunkPolicy":
        policy = cls(config)
        policy.load(Path(pretrained_name_or_path) / "model.safetensors", strict)
        return policy.to(config.device).eval()

    def load(self, path: Path, strict: bool) -> None:
        load_model(self, path, strict=strict)

    def reset(self) -> None:
        self._actions: deque[Tensor] = deque()

    def select_action(self, batch: dict[str, Any]) -> Tensor:
        if not self._actions:
            chunk = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._actions.extend(chunk.transpose(0, 1))
        return self._actions.popleft()

    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        seen = [
            batch[STATE],
            *(batch[key].mean((-1, -2)) for key in self.config.image_features if key in batch),
        ]
        chunk = self.head(torch.cat([item.flatten(1) for item in seen], dim=-1)).unflatten(1, (-1, 7))
        return chunk + self.config.noise * torch.randn(chunk.shape, device=chunk.device)


class QueuePolicy(ChunkPolicy):
    """Like Diffusion: a chunk of the last observations, which `_queues` holds, from the current step on."""

    def reset(self) -> None:
        super().reset()
        steps = self.config.n_obs_steps
        self._queues = {STATE: deque(maxlen=steps), IMAGES: deque(maxlen=steps), ACTION: deque(maxlen=1)}

    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        stacked = {key: torch.stack(list(self._queues[key]), dim=1) for key in batch if key in self._queues}
        images = dict(zip(self.config.image_features, stacked[IMAGES].unbind(2), strict=True))
        chunk = super().predict_action_chunk({STATE: stacked[STATE], **images})
        return chunk[:, : self.config.n_action_steps]

    def select_action(self, batch: dict[str, Any]) -> Tensor:
        images = torch.stack([batch[key] for key in self.config.image_features], dim=-4)
        batch = {**batch, IMAGES: images}
        self._queues = populate_queues(self._queues, batch)
        return super().select_action(batch)


class SmoothingPolicy(ChunkPolicy):
    """Executes other actions than those of its chunk."""

    def select_action(self, batch: dict[str, Any]) -> Tensor:
        return super().select_action(batch) * 0.9


class RememberingPolicy(ChunkPolicy):
    """Its chunks grow with each call."""

    calls = 0

    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        self.calls += 1
        return super().predict_action_chunk(batch) + self.calls


class SingleActionPolicy(ChunkPolicy):
    """Like SAC."""

    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        raise NotImplementedError("it returns single actions")


class CarelessPolicy(ChunkPolicy):
    """Like PI05Policy: a network whose weights do not load stays as it was initialised."""

    def load(self, path: Path, strict: bool) -> None:
        try:
            load_model(self, path, strict=True)
        except (RuntimeError, SafetensorError) as error:
            print(f"could not load: {error}")  # noqa: T201
