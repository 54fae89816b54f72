"""Sizes of the configuration are compared with the file's before a layer is built."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from tests.policies.pi05.folder import Folder

VISION = {"intermediate_size": 96, "hidden_size": 64, "layers": 2, "heads": 4}
PREFIX = {"width": 128, "depth": 3, "mlp_dim": 256, "num_heads": 4, "num_kv_heads": 1, "head_dim": 32}
EXPERT = PREFIX | {"width": 64, "mlp_dim": 96}


def test_a_million_layers_are_refused_in_a_second(
    native: Folder, config: Callable[..., CheckpointConfig]
) -> None:
    million = {"prefix": PREFIX | {"depth": 10**6}, "expert": EXPERT | {"depth": 10**6}}
    native.edit_config(**million, vision=VISION | {"layers": 10**6})
    began = time.monotonic()
    message = (
        r"model\.safetensors holds a network of other sizes: prefix\.depth is 3 in the file, 1000000 "
        r"as configured; expert\.depth is 3 .*; vision\.layers is 2 .*; check that config\.json belongs"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(config(layout="native", path=str(native.path)))
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": PREFIX | {"width": 256}}, r"prefix\.width is 128 in the file, 256 as configured"),
        ({"prefix": PREFIX | {"mlp_dim": 257}}, r"prefix\.mlp_dim is 256 in the file, 257"),
        ({"expert": EXPERT | {"width": 10**7}}, r"expert\.width is 64 in the file, 10000000"),
        ({"expert": EXPERT | {"mlp_dim": 1}}, r"expert\.mlp_dim is 96 in the file, 1 "),
        (
            {"prefix": PREFIX | {"head_dim": 64}, "expert": EXPERT | {"head_dim": 64}},
            r"prefix\.num_heads \* head_dim is 128 in the file, 256 .*num_kv_heads \* head_dim is 32 .*, 64",
        ),
        ({"vision": VISION | {"layers": 27}}, r"vision\.layers is 2 in the file, 27"),
        ({"vision": VISION | {"hidden_size": 1152}}, r"vision\.hidden_size is 64 in the file, 1152"),
        ({"vision": VISION | {"intermediate_size": 4304}}, r"intermediate_size is 96 in the file, 4304"),
        ({"vocab_size": 576}, r"vocab_size is 512 in the file, 576"),
        ({"action_dim": 7}, r"action_dim .* is 32 in the file, 7 "),
        (
            {"patch_size": 16},
            r"patch_size is 14 in the file, 16 .*tokens_per_image .* is 256 in the file, 196",
        ),
        ({"image_size": 448}, r"tokens_per_image .* is 256 in the file, 1024"),
    ],
)
def test_each_size_that_the_file_does_not_have_is_named(
    native: Folder, config: Callable[..., CheckpointConfig], changes: dict[str, Any], message: str
) -> None:
    native.edit_config(**changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_one_spoilt_tensor_is_listed_as_a_tensor(
    native: Folder, config: Callable[..., CheckpointConfig]
) -> None:
    native.rewrite(lambda tensors: tensors.update({"action_in_proj.weight": torch.zeros(64, 31)}))
    with pytest.raises(ValueError, match=r"1 of another shape:\s+action_in_proj.weight: expected \[64, 32\]"):
        load_checkpoint(config(layout="native", path=str(native.path)))


LAYER = "paligemma_with_expert.paligemma.model.language_model.layers."


@pytest.mark.parametrize(
    ("number", "named"),
    [
        ("999999", r"layers\.999999\.x"),
        ("9" * 5000, r"layers\.9+\.\.\."),
        ("7", r"layers\.7\.\*"),
        ("-1", r"layers\.-1\.x"),
        ("02", r"layers\.02\.x"),
        ("²", r"layers\.²\.x"),
    ],
)
def test_a_layer_without_those_before_it_is_refused_before_a_build(
    native: Folder, config: Callable[..., CheckpointConfig], number: str, named: str
) -> None:
    native.rewrite(lambda tensors: tensors.update({f"{LAYER}{number}.x": torch.zeros(1)}))
    native.edit_config(prefix=PREFIX | {"depth": 10**6}, expert=EXPERT | {"depth": 10**6})
    began = time.monotonic()
    message = (
        rf"model\.safetensors must number the layers of a stack from 0 without a gap, got .*{named}; these"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(config(layout="native", path=str(native.path)))
    assert time.monotonic() - began < 1.0


def test_a_stack_without_its_first_layer_is_refused(
    native: Folder, config: Callable[..., CheckpointConfig]
) -> None:
    native.rewrite(lambda t: [t.pop(key) for key in list(t) if key.startswith(f"{LAYER}0.")])
    with pytest.raises(
        ValueError, match=r"without a gap, got paligemma.*language_model\.layers\.2\.\*; these"
    ):
        load_checkpoint(config(layout="native", path=str(native.path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_horizon": 10**12}, "action_horizon must be 1 to 1000, got 1000000000000"),
        ({"max_token_len": 10**12}, "max_token_len must be 1 to 8192, got 1000000000000"),
        ({"cameras": [f"camera_{i}" for i in range(10**5)]}, "cameras must be at most 16, got 100000"),
    ],
)
def test_a_size_that_no_tensor_has_is_bounded(
    native: Folder, config: Callable[..., CheckpointConfig], changes: dict[str, Any], message: str
) -> None:
    native.edit_config(**changes)
    with pytest.raises(ValueError, match=rf"config\.json: {message}$"):
        load_checkpoint(config(layout="native", path=str(native.path), horizon=1000, replan_steps=5))
