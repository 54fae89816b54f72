"""What the pi0.5 tests share: small checkpoints in every layout, and requests with random images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.base import EpisodeKey, Observation, Request
from policies.files import ROOT
from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import Pi05Dims
from policies.pi05.random_weights import TOKENIZER_PATH
from tests.policies.pi05.folder import Folder

FIXTURE = ROOT / "tests" / "parity" / "pi05_small"
LEROBOT_SMALL = ROOT / "tests" / "parity" / "lerobot_small"
LEROBOT_STATS = (
    "policy_preprocessor_step_3_normalizer_processor.safetensors",
    "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # two threads on a shared machine are slower, and results do not depend on them


@pytest.fixture
def parity_folder() -> Path:
    """openpi's weights, inputs and outputs at a small size."""
    return FIXTURE


@pytest.fixture
def config() -> Callable[..., CheckpointConfig]:
    """Make a CheckpointConfig of the small random network, with changes."""

    def make(**changes: Any) -> CheckpointConfig:
        options: dict[str, Any] = {
            "name": "test",
            "layout": "random",
            "sizes": "small",
            "norm_mode": "quantile",
            "state_in_prompt": False,
            "horizon": 10,
            "replan_steps": 5,
            "denoise_steps": 2,
        }
        if "path" in changes:
            options["sizes"] = None
        return CheckpointConfig(**{**options, **changes})

    return make


@pytest.fixture(scope="session")
def small() -> Checkpoint:
    """The small random network in float32, three Euler steps."""
    return load_checkpoint(
        CheckpointConfig(
            name="random_small",
            layout="random",
            sizes="small",
            norm_mode="quantile",
            state_in_prompt=False,
            horizon=10,
            replan_steps=5,
            denoise_steps=3,
        )
    )


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """Make a request with random images, different for each `seed`."""

    def make(seed: int, instruction: str = "pick up the black bowl", call: int = 0) -> Request:
        rng = np.random.default_rng(seed)
        images = {
            name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            for name in ("agentview_image", "robot0_eye_in_hand_image")
        }
        observation = Observation(images, rng.uniform(-1, 1, 8), instruction)
        return Request(observation, EpisodeKey("libero_10", seed, 0, 7), call)

    return make


STATS = {
    "state": {"mean": [0.1] * 8, "std": [2.0] * 8, "q01": [-0.5] * 8, "q99": [1.5] * 8},
    "actions": {"mean": [0.2] * 7, "std": [0.5] * 7, "q01": [-1.0] * 7, "q99": [0.6] * 7},
}


@pytest.fixture
def native(tmp_path: Path) -> Folder:
    """openpi's small fixture weights as a native checkpoint."""
    folder = _weights(tmp_path / "native", "")
    (folder / "config.json").write_text((FIXTURE / "config.json").read_text())
    (folder / "norm_stats.json").write_text(json.dumps({"norm_stats": STATS}))
    return Folder(folder, "native")


@pytest.fixture
def openpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """The same weights as openpi's converter lays them out; the gemma variants are shrunk to fit them."""
    _shrink_variants(monkeypatch)
    folder = _weights(tmp_path / "openpi", "")
    config = {
        "action_dim": 32,
        "action_horizon": 10,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    assets = folder / "assets" / "physical-intelligence" / "libero"
    assets.mkdir(parents=True)
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": STATS}))
    return Folder(folder, "openpi")


@pytest.fixture
def lerobot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """The same weights as lerobot lays them out."""
    _shrink_variants(monkeypatch)
    folder = _weights(tmp_path / "lerobot", "model.")
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        shutil.copyfile(LEROBOT_SMALL / name, folder / name)
    names = {"observation.state": "state", "action": "actions"}
    stats = {
        f"{feature}.{stat}": np.asarray(values, dtype=np.float32)
        for feature, name in names.items()
        for stat, values in STATS[name].items()
    }
    for processor in LEROBOT_STATS:
        save_numpy(stats, folder / processor)
    written = Folder(folder, "lerobot")
    written.edit_config(chunk_size=10, n_action_steps=5)
    return written


@pytest.fixture
def saved(tmp_path: Path) -> Folder:
    """A folder that lerobot 0.6.2 wrote, without its recording."""
    ignored = shutil.ignore_patterns("io.safetensors", "prompts.json")
    return Folder(Path(shutil.copytree(LEROBOT_SMALL, tmp_path / "saved", ignore=ignored)), "lerobot")


@pytest.fixture
def load_saved(saved: Folder) -> Callable[..., Checkpoint]:
    """Load that folder as it says, with changes of the configuration."""

    def load(**changes: Any) -> Checkpoint:
        as_saved = dict.fromkeys(("norm_mode", "horizon", "replan_steps", "denoise_steps"))
        options = {"name": "saved", "layout": "lerobot", "path": str(saved.path), "state_in_prompt": True}
        return load_checkpoint(CheckpointConfig(**(as_saved | options | changes)))

    return load


def _weights(folder: Path, key_prefix: str) -> Path:
    folder.mkdir()
    tensors = load_file(FIXTURE / "model.safetensors")
    save_file({key_prefix + key: tensor for key, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "tokenizer.model").write_bytes(TOKENIZER_PATH.read_bytes())
    return folder


def _shrink_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    dims = Pi05Dims.from_native(json.loads((FIXTURE / "config.json").read_text()), "fixture")
    module = "policies.pi05.dims"
    monkeypatch.setattr(f"{module}.GEMMA_VARIANTS", {"gemma_2b": dims.prefix, "gemma_300m": dims.expert})
    monkeypatch.setattr(f"{module}.PALIGEMMA_VOCAB", dims.vocab_size)
    monkeypatch.setattr(f"{module}.SO400M", dims.vision)


class Counted:
    """The smallest stage that counts: what a policy asks of one."""

    def __init__(self, stage: nn.Module) -> None:
        self.backend = self.served_by = "fake"
        self.details = dict[str, Any]()
        self.calls = self.misses = self.refused = 0
        self.stage = stage

    def __call__(self, *args: Tensor | None) -> Any:
        self.calls += 1
        return self.stage(*args)


@pytest.fixture
def counted() -> type[Counted]:
    return Counted
