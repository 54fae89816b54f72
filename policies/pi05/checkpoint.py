"""Checkpoints: weights and everything bound to them, loaded whole or refused.

Layouts: `native` (config.json, model.safetensors, norm_stats.json, tokenizer.model), `openpi` (a converted
folder with assets/<asset_id>/norm_stats.json), `lerobot` (a folder or hub id), `random` (no files).
`policies.pi05.settings` decides what the folder's settings are.
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

from policies.base import ACTION_DIM, GuideOptions
from policies.files import read_json_object
from policies.pi05.checkpoint_config import LAYOUT_PREFIX, CheckpointConfig
from policies.pi05.checkpoint_files import (
    find_folder,
    find_norm_stats,
    find_tokenizer,
    find_weights,
    read_config,
)
from policies.pi05.checkpoint_layouts import load_stages, save_weights, stores_both_embeddings
from policies.pi05.denoise import Denoise
from policies.pi05.dims import PUBLISHED, RANDOM_SIZES, NamedSizes, Pi05Dims
from policies.pi05.lerobot_normalizer import LerobotNormalizer
from policies.pi05.norm_stats import (
    STATE_DIM,
    Normalizer,
    NormStats,
    read_lerobot_stats,
    unit_stats,
    write_json_stats,
)
from policies.pi05.pieces import check_size
from policies.pi05.postprocess import Postprocess
from policies.pi05.preprocess import Preprocess, prepare_images, prepare_images_like_lerobot
from policies.pi05.prompt import PromptTokenizer
from policies.pi05.random_weights import random_stages, recipe_sha256
from policies.pi05.settings import Settings, Stated, resolve
from policies.pi05.shipped_before import how_to_get
from policies.pi05.weight_files import hash_weights

SIZES = "sizes.json"  # beside lerobot's config.json where the network is a small one


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    config: CheckpointConfig  # as it was given
    settings: Settings  # what it and the folder say together
    dims: Pi05Dims
    stages: Mapping[str, nn.Module]  # vision, prefix and denoise, on `device`, eager
    tokenizer: PromptTokenizer
    norm_stats: NormStats
    weights_sha256: str  # of the weights (`hash_weights`); of the recipe for random weights
    weights_label: str  # the folder, or RANDOM WEIGHTS; tables must show it
    device: torch.device
    dtype: torch.dtype
    origins: Mapping[str, str] | None = None  # of keys of `config`, as `load_checkpoint` got them

    def preprocess(self, prompt_multiple: int = 1) -> Preprocess:
        """Build the preprocessing that these weights were trained with; `prompt_multiple` as there."""
        return Preprocess(
            self.dims,
            self.tokenizer,
            _normalizer(self.norm_stats, self.settings, "state"),
            self.settings.state_prompt_dims,
            self.device,
            prompt_multiple,
            prepare_images if self.settings.lerobot is None else prepare_images_like_lerobot,
        )

    def postprocess(self) -> Postprocess:
        """Build the postprocessing that these weights were trained with."""
        actions = _normalizer(self.norm_stats, self.settings, "actions")
        assert actions is not None
        return Postprocess(actions)

    @property
    def guidance(self) -> GuideOptions | None:
        """How the denoise stage guides; None where it takes no old chunk."""
        denoise = self.stages["denoise"]
        assert isinstance(denoise, Denoise)
        return denoise.options

    def with_guidance(self, options: GuideOptions) -> "Checkpoint":
        """Let the denoise stage guide its actions towards an old chunk; the weights are shared."""
        denoise = self.stages["denoise"]
        assert isinstance(denoise, Denoise)
        return replace(self, stages={**self.stages, "denoise": denoise.with_guidance(options)})

    def provenance(self) -> dict[str, Any]:
        """Describe the weights for the records, in plain JSON values."""
        norms = {self.settings.action_norm, self.settings.state_norm or self.settings.action_norm}
        settings = {name: stated.to_json() for name, stated in self.settings.stated.items()}
        return {
            "checkpoint": self.config.name,
            "layout": self.config.layout,
            "path": self.config.path,
            "revision": self.config.revision,
            "weights_label": self.weights_label,
            "weights_sha256": self.weights_sha256,
            "norm_stats_source": self.norm_stats.source,
            "norm_stats_sha256": self.norm_stats.sha256,
            "norm_mode": self.settings.action_norm if len(norms) == 1 else "see settings",
            "tokenizer_sha256": self.tokenizer.sha256,
            "state_in_prompt": self.config.state_in_prompt,
            "horizon": self.dims.action_horizon,
            **({"settings": settings} if settings else {}),
        }


def load_checkpoint(
    config: CheckpointConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    origins: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Load weights, statistics and tokenizer; the cheap checks come before the weights.

    Args:
        device: where the stages go, tensor by tensor.
        dtype: precision of the matmuls, float32 or bfloat16; norms, embeddings of patches and heads stay
            float32.
        origins: where keys of `config` have their values from, for the records; see `resolve`.

    Raises:
        FileNotFoundError: a part of the checkpoint is not where it belongs.
        ValueError: a part does not fit the config or the network.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}; fp16 overflows in the prefix")
    device = torch.device(device)
    if config.path is None:
        return _load_random(config, device, dtype, origins)
    folder = find_folder(config.path, config.layout, config.revision)
    weights = find_weights(folder)
    raw = _read_config(config, folder)
    settings = resolve(config, folder, raw, origins)
    dims = _read_dims(config, settings, folder, raw)
    norm_stats = _find_norm_stats(config, settings, folder)
    _check_stats(norm_stats, settings)
    tokenizer = _tokenizer(find_tokenizer(folder, config.tokenizer), dims)
    weights_sha256 = hash_weights(weights)
    if config.sha256 not in (None, weights_sha256):
        raise ValueError(
            f"checkpoint.sha256 of {weights} must be {config.sha256}, got {weights_sha256}; "
            "these are other weights: correct checkpoint.path, or checkpoint.sha256 if they are meant"
            f"{how_to_get(config.sha256)}"
        )
    is_lerobot = settings.lerobot is not None
    prefix = LAYOUT_PREFIX[config.layout]
    stages = load_stages(weights, prefix, dims, settings.denoise_steps, device, dtype, untied=is_lerobot)
    denoise = stages["denoise"]
    assert isinstance(denoise, Denoise)
    stages["denoise"] = denoise.with_periods(*settings.periods)
    if is_lerobot and stores_both_embeddings(weights, prefix):
        both = Stated("embed_tokens", f"{weights.name} stores lm_head too; lerobot reads embed_tokens")
        settings = replace(settings, stated={**settings.stated, "embedding": both})
    return Checkpoint(
        config,
        settings,
        dims,
        stages,
        tokenizer,
        norm_stats,
        weights_sha256,
        str(folder),
        device,
        dtype,
        origins,
    )


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


def _load_random(
    config: CheckpointConfig, device: torch.device, dtype: torch.dtype, origins: Mapping[str, str] | None
) -> Checkpoint:
    settings = resolve(config, None, None, origins)
    dims = replace(RANDOM_SIZES[str(config.sizes)], action_horizon=settings.horizon)
    from policies.pi05.random_weights import TOKENIZER_PATH

    folder = TOKENIZER_PATH.parent
    tokenizer = _tokenizer(find_tokenizer(folder, config.tokenizer), dims, is_random=True)
    norm_stats = (
        unit_stats() if config.norm_stats is None else find_norm_stats("native", folder, config.norm_stats)
    )
    _check_stats(norm_stats, settings)
    return Checkpoint(
        config,
        settings,
        dims,
        random_stages(dims, settings.denoise_steps, config.seed, device, dtype),
        tokenizer,
        norm_stats,
        recipe_sha256(dims, config.seed, device),
        f"RANDOM WEIGHTS ({config.sizes})",
        device,
        dtype,
        origins,
    )


def _tokenizer(path: Path, dims: Pi05Dims, *, is_random: bool = False) -> PromptTokenizer:
    tokenizer = PromptTokenizer(path)
    if not is_random or tokenizer.vocab_size > dims.vocab_size:  # random weights know no word of any size
        check_size(tokenizer.vocab_size, dims.vocab_size, path)
    return tokenizer


def _read_config(config: CheckpointConfig, folder: Path) -> dict[str, Any] | None:
    """Read config.json; None for a folder of openpi's PyTorch trainer, which has none."""
    if config.sizes is None:
        return read_config(folder)
    if (folder / "config.json").exists():
        raise ValueError(
            f"checkpoint.sizes must be null, got {config.sizes!r}: {folder / 'config.json'} has the sizes"
        )
    return None


def _read_dims(
    config: CheckpointConfig, settings: Settings, folder: Path, raw: Mapping[str, Any] | None
) -> Pi05Dims:
    source = str(folder / "config.json")
    if raw is None:
        return replace(PUBLISHED[str(config.sizes)], action_horizon=settings.horizon)
    if settings.lerobot is not None:
        sizes = None
        if (folder / SIZES).is_file():
            sizes = NamedSizes.from_json(read_json_object(folder / SIZES), str(folder / SIZES))
            source = f"{source} with {SIZES}"
        saved = settings.lerobot
        return Pi05Dims.from_lerobot(raw, source, saved.cameras, saved.masked_cameras, sizes)
    read = {"native": Pi05Dims.from_native, "openpi": Pi05Dims.from_openpi}[config.layout]
    dims = read(raw, source)
    if dims.action_horizon != settings.horizon:
        raise ValueError(
            f"checkpoint.horizon must be {dims.action_horizon} as in {source}, got {settings.horizon}; "
            f"set checkpoint.horizon={dims.action_horizon}, it belongs to the weights"
        )
    return dims


def _find_norm_stats(config: CheckpointConfig, settings: Settings, folder: Path) -> NormStats:
    """Read the statistics; lerobot's two processors have each their own."""
    if settings.lerobot is None or config.norm_stats is not None:
        return find_norm_stats(config.layout, folder, config.norm_stats)
    before = read_lerobot_stats(settings.lerobot.preprocessor.normalisation.stats)
    after = read_lerobot_stats(settings.lerobot.postprocessor.stats)
    if before.sha256 == after.sha256:
        return before
    return NormStats(
        before.state,
        after.actions,
        before.eps,
        f"{before.source} (state) and {after.source} (actions)",
        hashlib.sha256(f"{before.sha256} {after.sha256}".encode()).hexdigest(),
    )


def _normalizer(stats: NormStats, settings: Settings, feature: str) -> Normalizer | None:
    """The normaliser of `state` or `actions`; None for a state that nobody reads."""
    is_state = feature == "state"
    mode = settings.state_norm if is_state else settings.action_norm
    if mode is None:
        return None
    dim = STATE_DIM if is_state else ACTION_DIM
    source = f"{feature} in {stats.source}"
    if settings.lerobot is None:
        return Normalizer(getattr(stats, feature), mode, stats.eps, dim, source)
    saved = settings.lerobot
    eps = saved.preprocessor.normalisation.eps if is_state else saved.postprocessor.eps
    return LerobotNormalizer(getattr(stats, feature), mode, eps, dim, source)


def _check_stats(stats: NormStats, settings: Settings) -> None:
    for feature in ("actions", "state"):
        _normalizer(stats, settings, feature)
