"""Checkpoints: weights and everything bound to them, loaded whole or refused.

Layouts: `native` (config.json, model.safetensors, norm_stats.json, tokenizer.model), `openpi` (a converted
folder with assets/<asset_id>/norm_stats.json), `lerobot` (a folder or hub id), `random` (no files).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from policies.base import ACTION_DIM
from policies.pi05.checkpoint_config import LAYOUT_PREFIX, CheckpointConfig
from policies.pi05.checkpoint_files import (
    find_folder,
    find_norm_stats,
    find_tokenizer,
    find_weights,
    read_config,
)
from policies.pi05.checkpoint_layouts import load_stages, save_weights
from policies.pi05.dims import RANDOM_SIZES, Pi05Dims
from policies.pi05.norm_stats import (
    STATE_DIM,
    Normalizer,
    NormStats,
    unit_stats,
    write_json_stats,
)
from policies.pi05.postprocess import Postprocess
from policies.pi05.preprocess import Preprocess
from policies.pi05.prompt import PromptTokenizer
from policies.pi05.random_weights import random_stages, recipe_sha256

_READ_DIMS = {
    "native": Pi05Dims.from_native,
    "openpi": Pi05Dims.from_openpi,
    "lerobot": Pi05Dims.from_lerobot,
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    config: CheckpointConfig
    dims: Pi05Dims
    stages: Mapping[str, nn.Module]  # vision, prefix and denoise, on `device`, eager
    tokenizer: PromptTokenizer
    norm_stats: NormStats
    weights_sha256: str  # of model.safetensors; of the recipe for random weights
    weights_label: str  # the folder, or RANDOM WEIGHTS; tables must show it
    device: torch.device
    dtype: torch.dtype

    def preprocess(self, prompt_multiple: int = 1) -> Preprocess:
        """Build the preprocessing that these weights were trained with; `prompt_multiple` as there."""
        state = _normalizer(self.norm_stats, self.config, "state") if self.config.state_in_prompt else None
        state_dims = self.config.state_prompt_dims or 0
        return Preprocess(self.dims, self.tokenizer, state, state_dims, self.device, prompt_multiple)

    def postprocess(self) -> Postprocess:
        """Build the postprocessing that these weights were trained with."""
        return Postprocess(_normalizer(self.norm_stats, self.config, "actions"))

    def provenance(self) -> dict[str, Any]:
        """Describe the weights for the records, in plain JSON values."""
        return {
            "checkpoint": self.config.name,
            "layout": self.config.layout,
            "path": self.config.path,
            "revision": self.config.revision,
            "weights_label": self.weights_label,
            "weights_sha256": self.weights_sha256,
            "norm_stats_source": self.norm_stats.source,
            "norm_stats_sha256": self.norm_stats.sha256,
            "norm_mode": self.config.norm_mode,
            "tokenizer_sha256": self.tokenizer.sha256,
            "state_in_prompt": self.config.state_in_prompt,
            "horizon": self.dims.action_horizon,
        }


def load_checkpoint(
    config: CheckpointConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Load weights, statistics and tokenizer; the cheap checks come before the weights.

    Args:
        device: where the stages go, tensor by tensor.
        dtype: precision of the matmuls, float32 or bfloat16; norms, embeddings of patches and heads stay
            float32.

    Raises:
        FileNotFoundError: a part of the checkpoint is not where it belongs.
        ValueError: a part does not fit the config or the network.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}; fp16 overflows in the prefix")
    device = torch.device(device)
    if config.path is None:
        return _load_random(config, device, dtype)
    folder = find_folder(config.path, config.layout, config.revision)
    weights = find_weights(folder)
    raw = read_config(folder)
    dims = _READ_DIMS[config.layout](raw, str(folder / "config.json"))
    if dims.action_horizon != config.horizon:
        raise ValueError(
            f"checkpoint.horizon must be {dims.action_horizon} as in {folder / 'config.json'}, "
            f"got {config.horizon}; set checkpoint.horizon={dims.action_horizon}, it belongs to the weights"
        )
    if config.layout == "lerobot":
        _check_lerobot_norm_mode(raw, config, folder)
    norm_stats = find_norm_stats(config.layout, folder, config.norm_stats)
    tokenizer = _tokenizer(find_tokenizer(folder, config.tokenizer), dims)
    _check_stats(norm_stats, config)
    weights_sha256 = file_sha256(weights)
    if config.sha256 not in (None, weights_sha256):
        raise ValueError(
            f"checkpoint.sha256 of {weights} must be {config.sha256}, got {weights_sha256}; "
            "these are other weights: correct checkpoint.path, or checkpoint.sha256 if they are meant"
        )
    stages = load_stages(
        weights,
        LAYOUT_PREFIX[config.layout],
        dims,
        config.denoise_steps,
        device,
        dtype,
        untied=config.layout == "lerobot",
    )
    return Checkpoint(config, dims, stages, tokenizer, norm_stats, weights_sha256, str(folder), device, dtype)


def save_checkpoint(
    folder: Path, dims: Pi05Dims, stages: Mapping[str, nn.Module], norm_stats: NormStats, tokenizer: Path
) -> None:
    """Write a native checkpoint; files of an older one in `folder` are replaced, the weights last.

    Each parameter keeps its precision; the tokenizer's file is copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dims.to_native(), indent=1))
    write_json_stats(folder / "norm_stats.json", norm_stats)
    if tokenizer.resolve() != (folder / "tokenizer.model").resolve():
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
    save_weights(folder / "model.safetensors", stages)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_random(config: CheckpointConfig, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    dims = replace(RANDOM_SIZES[str(config.sizes)], action_horizon=config.horizon)
    from policies.pi05.random_weights import TOKENIZER_PATH

    folder = TOKENIZER_PATH.parent
    tokenizer = _tokenizer(find_tokenizer(folder, config.tokenizer), dims)
    norm_stats = (
        unit_stats() if config.norm_stats is None else find_norm_stats("native", folder, config.norm_stats)
    )
    _check_stats(norm_stats, config)
    return Checkpoint(
        config,
        dims,
        random_stages(dims, config.denoise_steps, config.seed, device, dtype),
        tokenizer,
        norm_stats,
        recipe_sha256(dims, config.seed, device),
        f"RANDOM WEIGHTS ({config.sizes})",
        device,
        dtype,
    )


def _tokenizer(path: Path, dims: Pi05Dims) -> PromptTokenizer:
    tokenizer = PromptTokenizer(path)
    if tokenizer.vocab_size > dims.vocab_size:
        raise ValueError(
            f"checkpoint.tokenizer must have at most vocab_size={dims.vocab_size} pieces, "
            f"got {tokenizer.vocab_size} in {path}; it belongs to another network, "
            "set checkpoint.tokenizer to the one of these weights"
        )
    return tokenizer


def _normalizer(stats: NormStats, config: CheckpointConfig, feature: str) -> Normalizer:
    dim = STATE_DIM if feature == "state" else ACTION_DIM
    return Normalizer(
        getattr(stats, feature), config.norm_mode, stats.eps, dim, f"{feature} in {stats.source}"
    )


def _check_stats(stats: NormStats, config: CheckpointConfig) -> None:
    _normalizer(stats, config, "actions")
    if config.state_in_prompt:
        _normalizer(stats, config, "state")


def _check_lerobot_norm_mode(raw: Mapping[str, Any], config: CheckpointConfig, folder: Path) -> None:
    expected = {"quantile": "QUANTILES", "mean_std": "MEAN_STD"}[config.norm_mode]
    mapping = raw.get("normalization_mapping")
    for feature in ("STATE", "ACTION"):
        trained = mapping.get(feature) if isinstance(mapping, Mapping) else None
        if trained != expected:
            raise ValueError(
                f"checkpoint.norm_mode={config.norm_mode} needs normalization_mapping.{feature}={expected}, "
                f"got {trained} in {folder / 'config.json'}; "
                "set checkpoint.norm_mode to the one that the weights were trained with"
            )
