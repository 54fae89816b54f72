"""As `lerobot.policies.factory`, with processors that a test can read at a glance."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, read_features
from lerobot.policies import networks

CLASSES = {
    "chunks": networks.ChunkPolicy,
    "queues": networks.QueuePolicy,
    "smooths": networks.SmoothingPolicy,
    "remembers": networks.RememberingPolicy,
    "single": networks.SingleActionPolicy,
    "careless": networks.CarelessPolicy,
}


def get_policy_class(name: str) -> type[networks.ChunkPolicy]:
    return CLASSES[name]


class Pipeline:
    """Steps that were read from a file, which change a batch or an action."""

    def __init__(self, path: Path, overrides: dict[str, dict[str, Any]], run: Callable[..., Any]) -> None:
        steps = json.loads(path.read_text())["steps"]
        for step in steps:
            if "registry_name" not in step:  # as `DataProcessorPipeline._resolve_step_class`
                importlib.import_module(step["class"].rpartition(".")[0])
        if missing := set(overrides) - {step["registry_name"] for step in steps}:
            raise KeyError(f"Override keys {missing} do not match any step")
        self.steps = [
            SimpleNamespace(**{**step["config"], **overrides.get(step["registry_name"], {})})
            for step in steps
        ]
        for step in self.steps:
            if hasattr(step, "norm_map"):
                step.norm_map = {
                    FeatureType(key): NormalizationMode(mode) for key, mode in step.norm_map.items()
                }
                step.features = read_features(step.features)
        self._run = run

    def __call__(self, data: Any) -> Any:
        for step in self.steps:
            data = self._run(step, data)
        return data


def _preprocess(step: SimpleNamespace, batch: dict[str, Any]) -> dict[str, Any]:
    names = getattr(step, "rename_map", {})
    batch = {names.get(key, key): value for key, value in batch.items()}
    if hasattr(step, "device"):
        batch = {
            key: value.to(step.device) if torch.is_tensor(value) else value for key, value in batch.items()
        }
    for key, stats in getattr(step, "stats", {}).items():
        if batch.get(key) is not None:
            mean, std = (torch.tensor(stats[name]).to(batch[key]) for name in ("mean", "std"))
            batch[key] = (batch[key] - mean) / std
    return {**batch, "action": None}


def _postprocess(step: SimpleNamespace, action: torch.Tensor) -> torch.Tensor:
    stats, action = step.stats.get("action"), action.cpu()
    return action if stats is None else action * torch.tensor(stats["std"]) + torch.tensor(stats["mean"])


def make_pre_post_processors(
    policy_cfg: PreTrainedConfig, pretrained_path: str | None = None, **kwargs: Any
) -> tuple[Pipeline, Pipeline]:
    folder = Path(str(pretrained_path))
    overrides = kwargs.get("preprocessor_overrides", {})
    return (
        Pipeline(folder / "policy_preprocessor.json", overrides, _preprocess),
        Pipeline(folder / "policy_postprocessor.json", {}, _postprocess),
    )
