"""Hub ids: all files that are read are downloaded, and a part in the cache is not taken for the whole."""

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from policies.pi05 import checkpoint_files
from policies.pi05.checkpoint_files import HUB_FILES, find_folder

NEEDED = ("config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json")
SHARDS = tuple(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


class Hub:
    """What `snapshot_download` does with one repository: copy what the patterns name into a cache."""

    def __init__(self, root: Path) -> None:
        self.repository, self.cache = root / "repository", root / "cache"
        self.downloads = 0

    def __call__(self, hub_id: str, allow_patterns: list[str], **options: Any) -> str:
        if options.get("local_files_only"):
            if not self.cache.is_dir():
                raise LocalEntryNotFoundError(hub_id)
            return str(self.cache)
        self.downloads += 1
        for path in self.repository.rglob("*"):
            name = str(path.relative_to(self.repository))
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.cache / name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(checkpoint_files, "snapshot_download", hub)
    return hub


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"weight_map": dict(enumerate(SHARDS))}))


def test_every_file_that_is_read_is_downloaded_and_no_other(hub: Hub) -> None:
    read = {
        *NEEDED,
        "model.safetensors.index.json",
        *SHARDS,
        "policy_preprocessor_step_2_normalizer_processor.safetensors",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer/tokenizer.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    fill(hub.repository, *read, "README.md", "train_config.json", "pytorch_model.bin", "training_state/x.pt")
    folder = find_folder("somebody/pi05", "lerobot", None)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == read
    assert len(set(HUB_FILES)) == len(HUB_FILES)


@pytest.mark.parametrize(
    "weights",
    [
        ("model.safetensors",),
        ("model.safetensors.index.json", *SHARDS),
        ("adapter_model.safetensors",),  # refused by name, also without a network
    ],
)
def test_a_whole_checkpoint_in_the_cache_is_not_downloaded_again(hub: Hub, weights: tuple[str, ...]) -> None:
    others = [name for name in NEEDED if name != "model.safetensors"]
    fill(hub.cache, *others, *weights)
    assert find_folder("somebody/pi05", "lerobot", None) == hub.cache
    assert hub.downloads == 0


@pytest.mark.parametrize("lost", [*NEEDED, SHARDS[1]])
def test_a_part_in_the_cache_is_completed(hub: Hub, lost: str) -> None:
    names = list(NEEDED)
    if lost in SHARDS:
        names = [name for name in names if name != "model.safetensors"]
        names += ["model.safetensors.index.json", *SHARDS]
    fill(hub.repository, *names)
    fill(hub.cache, *(name for name in names if name != lost))
    assert (find_folder("somebody/pi05", "lerobot", None) / lost).is_file()
    assert hub.downloads == 1
