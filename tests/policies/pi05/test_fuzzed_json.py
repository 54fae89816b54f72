"""Each value of each JSON file, replaced by what no program writes: a checkpoint, or one line about it."""

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from safetensors.torch import save_file

from policies.pi05 import checkpoint as module
from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.checkpoint_files import find_weights
from policies.pi05.lerobot_parity import compare_lerobot
from policies.pi05.weight_files import open_weights
from tests.policies.pi05.conftest import LEROBOT_SMALL
from tests.policies.pi05.folder import Folder

LONGEST = 1500  # characters of a message
DEEP = "nested more deeply than any parser reads"
VALUES: dict[str, Any] = {
    "list": [1],
    "empty list": [],
    "object": {"a": 1},
    "text": "text",
    "two lines": "two\nlines\ud800",
    "huge": 10**400,
    "large": 10**12,
    "negative": -1,
    "zero": 0,
    "nan": float("nan"),
    "infinite": float("inf"),
    "null": None,
    "true": True,
    "deep": functools.reduce(lambda inner, _: [inner], range(90), 1),
    "deeper": DEEP,
}


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values; of a list of numbers, only the first and the last."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from nodes(item, (*path, key))
    elif isinstance(value, list) and value:
        places = range(len(value)) if isinstance(value[0], dict) else {0, len(value) - 1}
        for i in places:
            yield from nodes(value[i], (*path, i))


def spoil(content: Any, path: tuple[Any, ...], value: Any) -> str:
    """The file's text with one value replaced."""
    if not path:
        content = value
    else:
        content = copy.deepcopy(content)
        parent = functools.reduce(lambda inner, key: inner[key], path[:-1], content)
        parent[path[-1]] = value
    depth = 10**5
    return json.dumps(content).replace(json.dumps(DEEP), "[" * depth + "]" * depth)


def complaints(folder: Folder, name: str, load: Callable[[], object]) -> list[str]:
    """Load with each value of a file replaced; list what is neither a checkpoint nor one line about it."""
    file = folder.path / name
    text = file.read_text()
    content = json.loads(text)
    found = []
    for path in nodes(content):
        for what, value in VALUES.items():
            file.write_text(spoil(content, path, value))
            case = f"{'.'.join(map(str, path))} = {what}"
            try:
                load()
            except (ValueError, OSError) as error:
                message = str(error)
                # sizes.json is config.json's continuation
                is_named = any(word in message for word in (file.name, "config.json", "checkpoint."))
                if "\n" in message or len(message) > LONGEST or not is_named:
                    found.append(f"{case}: {type(error).__name__}: {message[:300]!r}")
            except Exception as error:  # noqa: BLE001  what a user would see as a traceback
                found.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
    file.write_text(text)
    return found


@pytest.fixture(autouse=True)
def _weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the weights once for each network: these tests leave them as they are."""
    monkeypatch.setattr(module, "load_stages", functools.cache(module.load_stages))
    monkeypatch.setattr(module, "hash_weights", functools.cache(module.hash_weights))
    monkeypatch.setattr(module, "stores_both_embeddings", functools.cache(module.stores_both_embeddings))


@pytest.mark.parametrize(
    "name", ["config.json", "policy_preprocessor.json", "policy_postprocessor.json", "sizes.json"]
)
def test_lerobots_files(saved: Folder, load_saved: Callable[..., object], name: str) -> None:
    assert complaints(saved, name, load_saved) == []


@pytest.mark.parametrize("name", ["config.json", "assets/physical-intelligence/libero/norm_stats.json"])
def test_openpis_files(openpi: Folder, config: Callable[..., CheckpointConfig], name: str) -> None:
    for horizon in (10, None):
        chosen = config(layout="openpi", path=str(openpi.path), horizon=horizon)
        assert complaints(openpi, name, lambda chosen=chosen: load_checkpoint(chosen)) == []


@pytest.mark.parametrize("name", ["config.json", "norm_stats.json"])
def test_our_own_files(native: Folder, config: Callable[..., CheckpointConfig], name: str) -> None:
    chosen = config(layout="native", path=str(native.path))
    assert complaints(native, name, lambda: load_checkpoint(chosen)) == []


def test_the_index_of_shards(native: Folder) -> None:
    tensors, shard = native.tensors(), "model-00001-of-00001.safetensors"
    names = sorted(tensors)[:2]
    save_file({name: tensors[name] for name in names}, native.path / shard)
    index = native.path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}))

    def load() -> None:
        with open_weights(index):
            pass

    assert complaints(native, index.name, load) == []


def test_the_configuration_of_an_adapter(native: Folder) -> None:
    (native.path / "model.safetensors").unlink()
    (native.path / "adapter_model.safetensors").touch()
    adapter = native.path / "adapter_config.json"
    adapter.write_text(json.dumps({"base_model_name_or_path": "lerobot/pi05_base", "r": 16}))
    assert complaints(native, adapter.name, lambda: find_weights(native.path)) == []


def test_the_prompts_of_a_recording(saved: Folder) -> None:
    shutil.copyfile(LEROBOT_SMALL / "io.safetensors", saved.path / "io.safetensors")
    shutil.copyfile(LEROBOT_SMALL / "prompts.json", saved.path / "prompts.json")

    def load() -> None:
        compare_lerobot(saved.path, module.torch.device("cpu"))

    assert complaints(saved, "prompts.json", load) == []
