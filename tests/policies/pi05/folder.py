"""A checkpoint on disk that a test may spoil."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class Folder:
    """A checkpoint on disk that a test may spoil."""

    path: Path
    layout: str

    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path / "model.safetensors")

    def rewrite(self, change: Callable[[dict[str, Tensor]], None]) -> None:
        tensors = self.tensors()
        change(tensors)
        save_file(tensors, self.path / "model.safetensors")

    def edit_config(self, **changes: Any) -> None:
        self.edit_json("config.json", lambda config: config.update(changes))

    def edit_json(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads((self.path / name).read_text())
        change(content)
        (self.path / name).write_text(json.dumps(content))

    def edit_step(self, processor: str, step: str, **changes: Any) -> None:
        """Change the config of a step of lerobot's pre- or postprocessor."""

        def change(content: dict[str, Any]) -> None:
            (config,) = (s["config"] for s in content["steps"] if s["registry_name"] == step)
            config.update(changes)

        self.edit_json(processor, change)
