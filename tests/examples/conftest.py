"""The stand-in for `lerobot` on the path, and folders as its `save_pretrained` writes them."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import save_model

FAKE = Path(__file__).parent / "fake_lerobot"
STATS: dict[str, dict[str, Any]] = {
    "observation.state": {"mean": [0.5] * 8, "std": [2.0] * 8},
    "action": {"mean": [0.25] * 7, "std": [0.5] * 7},
}
MODES = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


def image(height: int = 256) -> dict[str, Any]:
    return {"type": "VISUAL", "shape": [3, height, height]}


INPUTS = {
    "observation.images.image": image(),
    "observation.images.image2": image(),
    "observation.state": {"type": "STATE", "shape": [8]},
}
OUTPUTS = {"action": {"type": "ACTION", "shape": [7]}}


class Save(Protocol):
    def __call__(
        self,
        *,
        rename_map: Mapping[str, str] | None = None,
        stats: Mapping[str, Any] | None = None,
        modes: Mapping[str, str] | None = None,
        **config: Any,
    ) -> Path: ...


@pytest.fixture(autouse=True)
def fake_lerobot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lerobot"]:
            del sys.modules[name]

    forget()
    monkeypatch.syspath_prepend(FAKE)
    yield
    forget()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a policy of the stand-in with random weights, as lerobot does; keywords change its config.json."""

    def save_policy(
        *,
        rename_map: Mapping[str, str] | None = None,
        stats: Mapping[str, Any] | None = None,
        modes: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Path:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import CLASSES, get_policy_class

        folder = tmp_path / "policy"
        folder.mkdir(exist_ok=True)
        config = {"type": "chunks", "device": "cuda", "input_features": INPUTS, "output_features": OUTPUTS}
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        normaliser = {
            "features": {**INPUTS, **OUTPUTS},
            "norm_map": MODES if modes is None else modes,
            "stats": STATS if stats is None else stats,
        }
        steps = [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": rename_map or {}}},
            {"registry_name": "device_processor", "config": {"device": "nowhere"}},
            {"registry_name": "normalizer_processor", "config": normaliser},
        ]
        (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
        (folder / "policy_postprocessor.json").write_text(json.dumps({"steps": steps[-1:]}))
        parsed = PreTrainedConfig.from_pretrained(folder)
        parsed.pretrained_backbone_weights = None
        (folder / "model.safetensors").touch()
        if parsed.type in CLASSES:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                save_model(get_policy_class(parsed.type)(parsed), str(folder / "model.safetensors"))
        return folder

    return save_policy
