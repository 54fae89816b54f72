"""As `lerobot.configs.policies`, with the fields of several policies in one class."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lerobot.configs.types import FeatureType, PolicyFeature, read_features


@dataclass
class PreTrainedConfig:
    kind: str = "chunks"  # lerobot's `type` is the name under which the class is registered
    n_obs_steps: int = 1
    input_features: dict[str, PolicyFeature] | None = field(default_factory=dict)
    output_features: dict[str, PolicyFeature] | None = field(default_factory=dict)
    device: str | None = None
    use_amp: bool = False
    chunk_size: int = 8
    n_action_steps: int | None = 4
    noise: float = 0.0  # how much of the chunk is drawn
    empty_cameras: int = 0
    image_resolution: tuple[int, int] | None = None
    pretrained_backbone_weights: str | None = "from the internet"
    action_tokenizer_name: str = "lerobot/fast-action-tokenizer"
    temporal_ensemble_coeff: float | None = None
    rtc_config: Any = None
    use_relative_actions: bool = False

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            self.device = "cpu"
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            raise NotImplementedError("`n_action_steps` must be 1 when using temporal ensembling")
        if isinstance(self.rtc_config, dict):
            self.rtc_config = SimpleNamespace(**self.rtc_config)

    @property
    def type(self) -> str:
        return self.kind

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        features = self.input_features or {}
        return {key: item for key, item in features.items() if item.type is FeatureType.VISUAL}

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path) -> "PreTrainedConfig":
        config = json.loads((Path(pretrained_name_or_path) / "config.json").read_text())
        config["kind"] = config.pop("type")
        for name in ("input_features", "output_features"):
            config[name] = read_features(config[name])
        return cls(**config)
