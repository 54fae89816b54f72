"""The table of JAX arrays: it yields what the loader reads, and refuses trees that are not pi0.5's."""

import math

import pytest
import torch

from policies.pi05.checkpoint_keys import EXPERT
from policies.pi05.checkpoint_layouts import meta_stages, named_tensors, unused_shapes
from policies.pi05.convert import config_json
from policies.pi05.dims import PI05_FULL
from policies.pi05.jax_tensors import KNOWN_SIZES, ROWS, derive_dims, read_sizes

Shapes = dict[str, tuple[int, ...]]
FULL = KNOWN_SIZES | {
    "patch_y": 14,
    "patch_x": 14,
    "positions": 256,
    "vision": 1152,
    "vision_layers": 27,
    "vision_mlp": 4304,
    "vision_heads": 16,
    "vision_head_dim": 72,
    "vocab": 257152,
    "width": 2048,
    "layers": 18,
    "mlp": 16384,
    "heads": 8,
    "kv_heads": 1,
    "head_dim": 256,
    "expert": 1024,
    "expert_mlp": 4096,
    "modulation": 3072,
    "action": 32,
    "time": 1024,
}


@pytest.fixture
def shapes() -> Shapes:
    """Shapes of the published checkpoint's arrays."""
    return {path: tuple(FULL[axis] for axis in row.axes.split()) for path, row in ROWS.items()}


def test_the_published_sizes_are_read_off_the_shapes(shapes: Shapes) -> None:
    sizes = read_sizes(shapes, "SRC")
    assert sizes == FULL
    assert derive_dims(sizes, 10, "SRC") == PI05_FULL
    assert config_json(PI05_FULL, {torch.float32}) == {
        "action_dim": 32,
        "action_horizon": 10,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "float32",
    }
    assert config_json(PI05_FULL, {torch.bfloat16})["precision"] == "bfloat16"
    assert config_json(PI05_FULL, {torch.bfloat16, torch.float32})["precision"] == "float32"


def test_51_arrays_hold_every_tensor_of_the_full_network_in_its_shape_once(shapes: Shapes) -> None:
    slices = [part for row in ROWS.values() for part in row.slices(FULL)]
    expected = {
        key: tuple(tensor.shape) for key, (_, _, tensor) in named_tensors(meta_stages(PI05_FULL, 1)).items()
    }
    expected |= unused_shapes(PI05_FULL)
    del expected[f"{EXPERT}lm_head.weight"]  # which JAX's network does not have
    assert len(ROWS) == 51
    assert len(slices) == len(expected)
    assert {part.key: part.shape for part in slices} == expected
    assert sum(math.prod(part.shape) for part in slices) == sum(math.prod(shape) for shape in shapes.values())


def test_all_that_is_wrong_with_a_tree_is_in_one_error(shapes: Shapes) -> None:
    del shapes["PaliGemma/img/head/bias"], shapes["time_mlp_in/kernel"]
    shapes["ema/step"] = (1,)
    shapes["PaliGemma/llm/layers/mlp/linear"] = (18, 16384, 2000)
    shapes["PaliGemma/llm/final_norm/scale"] = (2048, 1)
    with pytest.raises(ValueError, match=r"SRC does not hold openpi's pi0\.5") as caught:
        read_sizes(shapes, "SRC")
    text = str(caught.value)
    assert "2 missing:\n    PaliGemma/img/head/bias\n    time_mlp_in/kernel\n" in text
    assert "1 unexpected:\n    ema/step\n" in text
    assert "PaliGemma/llm/final_norm/scale: expected (width) [2048], got [2048, 1]\n" in text
    assert "linear: expected (layers mlp width) [18, 16384, 2048], got [18, 16384, 2000]" in text
    assert text.endswith("check that SRC is a whole checkpoint of openpi's pi0.5; nothing was written")


@pytest.mark.parametrize(
    ("extra", "way_out"),
    [
        ("PaliGemma/llm/layers/attn/q_einsum/lora_a", "merge the LoRA adapters into the weights first"),
        ("state_proj/kernel", "this is pi0, another network; convert a pi0.5"),
    ],
)
def test_lora_and_pi0_get_a_way_out_of_their_own(shapes: Shapes, extra: str, way_out: str) -> None:
    with pytest.raises(ValueError, match=f"1 unexpected:\n    {extra}\n{way_out}; nothing was written"):
        read_sizes(shapes | {extra: (1, 1)}, "SRC")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_x": 16}, "patch_x must be 14, got 16 in SRC; this is another network"),
        ({"positions": 250}, "positions must be 225, got 250"),
        ({"vision_heads": 8}, "vision must be 576, got 1152"),
        ({"modulation": 2048}, "modulation must be 3072, got 2048"),
        ({"time": 512}, "time must be 1024, got 512"),
        ({"layers": 10**9}, "layers must be <= 1000, got 1000000000 in SRC; it is damaged"),
        ({"vision_layers": 1001}, "vision_layers must be <= 1000, got 1001 in SRC"),
        ({"kv_heads": 3}, "SRC: prefix.num_heads must be a multiple of prefix.num_kv_heads=3, got 8"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        derive_dims(FULL | changes, 10, "SRC")


def test_a_tensor_is_cut_out_of_its_array_and_reordered() -> None:
    array = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # layers, heads, width, head_dim
    row = ROWS["PaliGemma/llm/layers/attn/q_einsum/w"]
    sizes = {"layers": 2, "heads": 3, "width": 4, "head_dim": 5}
    first, second = row.slices(sizes)
    assert second.key == first.key.replace("layers.0.", "layers.1.")
    cut = second.cut(array)
    assert cut.shape == (15, 4)
    assert cut[1 * 5 + 2, 3] == array[1, 1, 3, 2]
