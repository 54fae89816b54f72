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
        path = self.path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
