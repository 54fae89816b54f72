"""Weight files: shards are read as one, and what is no weight, or not finite, is refused by name."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.weight_files import INDEX, hash_weights
from tests.policies.pi05.folder import Folder

NORM = "paligemma_with_expert.paligemma.model.language_model.layers.0.input_layernorm.weight"
Load = Callable[[], Checkpoint]


@pytest.fixture
def load(native: Folder, config: Callable[..., CheckpointConfig]) -> Load:
    """Load the native folder as it is then."""
    return lambda: load_checkpoint(config(layout="native", path=str(native.path)))


def shard(folder: Path, number: int = 3) -> dict[str, Any]:
    """Spread model.safetensors over shards as huggingface_hub does; return the index."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = [f"model-{i + 1:05}-of-{number:05}.safetensors" for i in range(number)]
    weight_map = {key: names[i % number] for i, key in enumerate(sorted(tensors))}
    for name in names:
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return index


def change_shard(folder: Path, number: int, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / f"model-{number:05}-of-00003.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_shards_give_the_same_network_as_one_file(native: Folder, load: Load) -> None:
    whole = load()
    shard(native.path)
    sharded = load()
    for stage, module in whole.stages.items():
        for name, tensor in sharded.stages[stage].state_dict().items():
            assert torch.equal(tensor, module.state_dict()[name])
    assert len(sharded.provenance()["weights_sha256"]) == 64


def test_hash_of_shards_is_what_sha256sum_says(native: Folder) -> None:
    shard(native.path)
    command = f"LC_ALL=C; sha256sum {INDEX} model-*.safetensors | sha256sum"
    said = subprocess.run(command, shell=True, cwd=native.path, capture_output=True, text=True, check=True)
    assert hash_weights(native.path / INDEX) == said.stdout.split()[0]


def test_hash_of_shards_pins_them(native: Folder, config: Callable[..., CheckpointConfig]) -> None:
    shard(native.path)
    pinned = config(layout="native", path=str(native.path), sha256=hash_weights(native.path / INDEX))
    assert load_checkpoint(pinned).weights_sha256 == pinned.sha256
    change_shard(native.path, 2, lambda tensors: next(iter(tensors.values())).add_(1))
    with pytest.raises(ValueError, match=r"checkpoint\.sha256 of .*index\.json must be .*other weights"):
        load_checkpoint(pinned)


def test_missing_shards_are_named(native: Folder, load: Load) -> None:
    shard(native.path)
    (native.path / "model-00002-of-00003.safetensors").unlink()
    message = r"index\.json names 3 shards, 1 of them not there: model-00002-of-00003\.safetensors; download"
    with pytest.raises(FileNotFoundError, match=message):
        load()


@pytest.mark.parametrize(
    "name", ["../model-00001-of-00003.safetensors", "/etc/passwd", "sub/a.safetensors", "pytorch_model.bin"]
)
def test_a_shard_of_another_folder_or_kind_is_refused(native: Folder, load: Load, name: str) -> None:
    index = shard(native.path)
    index["weight_map"][NORM] = name
    (native.path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"weight_map in .* must name \*\.safetensors .*, got '{name}'; "):
        load()


def test_index_and_shards_that_disagree_are_refused_with_every_tensor(native: Folder, load: Load) -> None:
    index = shard(native.path)
    weight_map = index["weight_map"]
    lost, moved, twice = (next(k for k, v in weight_map.items() if f"-0000{n}-" in v) for n in (1, 2, 3))
    change_shard(native.path, 1, lambda tensors: tensors.pop(lost))
    weight_map[moved] = "model-00003-of-00003.safetensors"
    change_shard(native.path, 2, lambda tensors: tensors.update({twice: torch.zeros(1)}))
    change_shard(native.path, 3, lambda tensors: tensors.update({"extra": torch.zeros(1)}))
    (native.path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="does not describe its shards") as caught:
        load()
    text = str(caught.value)
    assert f"1 in no shard:\n    {lost}: model-00001-of-00003.safetensors\n" in text
    assert f"1 in more than one shard:\n    {twice}: model-00002-of-00003.safetensors, model-00003" in text
    assert f"1 in another shard than the index says:\n    {moved}: model-00002-of-00003.safetensor" in text
    assert "1 in a shard but not in the index:\n    extra\n" in text


@pytest.mark.parametrize("content", ["[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{", "\udcff"])
def test_index_of_another_kind_is_refused_by_file(native: Folder, load: Load, content: str) -> None:
    shard(native.path)
    (native.path / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json (must be|is not JSON)"):
        load()


def test_truncated_shard_is_named(native: Folder, load: Load) -> None:
    shard(native.path)
    path = native.path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is not a readable safetensors"):
        load()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_types_load(native: Folder, load: Load, dtype: torch.dtype) -> None:
    expected = native.tensors()[NORM].to(dtype).float()
    native.rewrite(lambda tensors: tensors.update({key: t.to(dtype) for key, t in tensors.items()}))
    assert torch.equal(load().stages["prefix"].state_dict()["layers.0.input_layernorm.weight"], expected)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.complex64, "C64"),
    ],
)
def test_tensors_of_other_types_are_refused(
    native: Folder, load: Load, dtype: torch.dtype, name: str
) -> None:
    native.rewrite(lambda tensors: tensors.update({NORM: tensors[NORM].to(dtype)}))
    with pytest.raises(ValueError, match=rf"1 of a type that is not F64, F32, F16, BF16:\s+{NORM}: {name}\n"):
        load()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_place_and_count(
    native: Folder, load: Load, bad: float
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["action_in_proj.weight"][3, 5] = tensors["action_in_proj.weight"][9, 0] = bad

    native.rewrite(spoil)
    message = rf"^action_in_proj\.weight must be finite .*, got {bad} at \[3, 5\] \(2 of 2048 numbers\) in "
    with pytest.raises(ValueError, match=message):
        load()


def test_numbers_too_large_for_the_precision_that_runs_are_refused(native: Folder, load: Load) -> None:
    native.rewrite(lambda tensors: tensors.update({NORM: tensors[NORM].double().fill_(1e300)}))
    with pytest.raises(ValueError, match=rf"{NORM} must be finite in float32, got inf at \[0\]"):
        load()


def test_the_largest_numbers_of_a_precision_are_finite(native: Folder, load: Load) -> None:
    most = torch.finfo(torch.float32).max
    native.rewrite(lambda tensors: tensors[NORM][:2].copy_(torch.tensor([most, -most])))
    weight = load().stages["prefix"].state_dict()["layers.0.input_layernorm.weight"]
    assert weight[:2].tolist() == [most, -most]
