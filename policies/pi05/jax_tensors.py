"""openpi's JAX arrays and the tensors of its PyTorch layout that each of them holds.

The table says it with axes in words. Axes that `order` leaves out are taken apart: one tensor for each layer
and each part. The others are put into `order`, where words in parentheses become one axis:
(layers, heads, width, head_dim) -> one q_proj.weight of (heads x head_dim, width) a layer.

Source of names and orders: openpi models/{pi0,gemma,siglip}.py and examples/convert_jax_model_to_pytorch.py.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from policies.pi05.checkpoint_keys import EMBEDDING_KEY, EXPERT, LANGUAGE, PALIGEMMA, TOWER
from policies.pi05.dims import (
    LIBERO_MASKED_CAMERAS,
    MAX_LAYERS,
    OPENPI_CAMERAS,
    OPENPI_MAX_TOKEN_LEN,
    Pi05Dims,
)
from policies.text import listing

KNOWN_SIZES = {"one": 1, "two": 2, "rgb": 3}  # axes of a size that no network chooses
IMG, LLM = "PaliGemma/img/", "PaliGemma/llm/"
BLOCK, LAYERS = f"{IMG}Transformer/encoderblock/", f"{LLM}layers/"


@dataclass(frozen=True)
class Slice:
    """One tensor of the result: `array[index]`, whose remaining `axes` are put into `order`."""

    key: str
    index: tuple[int, ...]
    axes: tuple[str, ...]
    order: str
    shape: tuple[int, ...]

    def cut(self, array: Tensor) -> Tensor:
        """Cut the tensor out of the whole array; a view where that is possible."""
        words = _words(self.order)
        return array[self.index].permute([self.axes.index(word) for word in words]).reshape(self.shape)


@dataclass(frozen=True)
class Row:
    """One row of the table: `key` has a {} for each axis that is taken apart, but for those of size one."""

    path: str
    axes: str
    key: str
    order: str
    parts: tuple[str, ...] = ()  # names along the axis `two`

    def slices(self, sizes: Mapping[str, int]) -> Iterator[Slice]:
        """Yield the tensors that the array holds, in the order of its storage."""
        axes, kept = self.axes.split(), _words(self.order)
        apart = [axis for axis in axes if axis not in kept]
        assert axes[: len(apart)] == apart, f"{self.path}: only leading axes can be taken apart"
        shape = tuple(math.prod(sizes[word] for word in group.split()) for group in _groups(self.order))
        for index in itertools.product(*(range(sizes[axis]) for axis in apart)):
            names = [
                self.parts[place] if axis == "two" else str(place)
                for axis, place in zip(apart, index, strict=True)
                if axis != "one"
            ]
            yield Slice(self.key.format(*names), index, tuple(axes[len(apart) :]), self.order, shape)


def _groups(order: str) -> list[str]:
    return [group or word for group, word in re.findall(r"\(([^)]*)\)|([^\s()]+)", order)]


def _words(order: str) -> list[str]:
    return " ".join(_groups(order)).split()


def _vision_rows() -> Iterator[Row]:
    embeddings, layer = f"{TOWER}embeddings.", f"{TOWER}encoder.layers.{{}}."
    patch = "patch_y patch_x rgb vision"
    yield Row(
        f"{IMG}embedding/kernel", patch, f"{embeddings}patch_embedding.weight", "vision rgb patch_y patch_x"
    )
    yield Row(f"{IMG}embedding/bias", "vision", f"{embeddings}patch_embedding.bias", "vision")
    position = f"{embeddings}position_embedding.weight"
    yield Row(f"{IMG}pos_embedding", "one positions vision", position, "positions vision")
    for path, axes, norm in (
        (f"{BLOCK}LayerNorm_0/", "vision_layers vision", f"{layer}layer_norm1."),
        (f"{BLOCK}LayerNorm_1/", "vision_layers vision", f"{layer}layer_norm2."),
        (f"{IMG}Transformer/encoder_norm/", "vision", f"{TOWER}post_layernorm."),
    ):
        yield Row(f"{path}scale", axes, f"{norm}weight", "vision")
        yield Row(f"{path}bias", axes, f"{norm}bias", "vision")
    for path, inputs, outputs, name in (
        (f"{BLOCK}MlpBlock_0/Dense_0/", "vision", "vision_mlp", "fc1"),
        (f"{BLOCK}MlpBlock_0/Dense_1/", "vision_mlp", "vision", "fc2"),
    ):
        key = f"{layer}mlp.{name}."
        yield Row(f"{path}kernel", f"vision_layers {inputs} {outputs}", f"{key}weight", f"{outputs} {inputs}")
        yield Row(f"{path}bias", f"vision_layers {outputs}", f"{key}bias", outputs)
    attention, heads = f"{BLOCK}MultiHeadDotProductAttention_0/", "vision_heads vision_head_dim"
    for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        path, key = f"{attention}{name}/", f"{layer}self_attn.{projection}."
        yield Row(f"{path}kernel", f"vision_layers vision {heads}", f"{key}weight", f"({heads}) vision")
        yield Row(f"{path}bias", f"vision_layers {heads}", f"{key}bias", f"({heads})")
    path, key = f"{attention}out/", f"{layer}self_attn.out_proj."
    yield Row(f"{path}kernel", f"vision_layers {heads} vision", f"{key}weight", f"vision ({heads})")
    yield Row(f"{path}bias", "vision_layers vision", f"{key}bias", "vision")
    projector = f"{PALIGEMMA}model.multi_modal_projector.linear."
    yield Row(f"{IMG}head/kernel", "vision width", f"{projector}weight", "width vision")
    yield Row(f"{IMG}head/bias", "width", f"{projector}bias", "width")


def _gemma_rows(suffix: str, width: str, mlp: str, layer: str) -> Iterator[Row]:
    """Attention and MLP of one Gemma stack: PaliGemma's (no suffix), or the action expert's (`_1`)."""
    attention, key = f"{LAYERS}attn/", f"{layer}self_attn."
    yield Row(
        f"{attention}q_einsum{suffix}/w",
        f"layers heads {width} head_dim",
        f"{key}q_proj.weight",
        f"(heads head_dim) {width}",
    )
    yield Row(
        f"{attention}kv_einsum{suffix}/w",
        f"layers two kv_heads {width} head_dim",
        f"{key}{{}}.weight",
        f"(kv_heads head_dim) {width}",
        ("k_proj", "v_proj"),
    )
    yield Row(
        f"{attention}attn_vec_einsum{suffix}/w",
        f"layers heads head_dim {width}",
        f"{key}o_proj.weight",
        f"{width} (heads head_dim)",
    )
    yield Row(
        f"{LAYERS}mlp{suffix}/gating_einsum",
        f"layers two {width} {mlp}",
        f"{layer}mlp.{{}}.weight",
        f"{mlp} {width}",
        ("gate_proj", "up_proj"),
    )
    yield Row(
        f"{LAYERS}mlp{suffix}/linear",
        f"layers {mlp} {width}",
        f"{layer}mlp.down_proj.weight",
        f"{width} {mlp}",
    )


def _language_rows() -> Iterator[Row]:
    layer = f"{LANGUAGE}layers.{{}}."
    yield Row(f"{LLM}embedder/input_embedding", "vocab width", EMBEDDING_KEY, "vocab width")
    yield from _gemma_rows("", "width", "mlp", layer)
    for path, axes, key in (
        (f"{LAYERS}pre_attention_norm/", "layers width", f"{layer}input_layernorm."),
        (f"{LAYERS}pre_ffw_norm/", "layers width", f"{layer}post_attention_layernorm."),
        (f"{LLM}final_norm/", "width", f"{LANGUAGE}norm."),
    ):
        yield Row(f"{path}scale", axes, f"{key}weight", "width")


def _expert_rows() -> Iterator[Row]:
    layer = f"{EXPERT}model.layers.{{}}."
    yield from _gemma_rows("_1", "expert", "expert_mlp", layer)
    for path, stack, key in (
        (f"{LAYERS}pre_attention_norm_1/Dense_0/", "layers ", f"{layer}input_layernorm.dense."),
        (f"{LAYERS}pre_ffw_norm_1/Dense_0/", "layers ", f"{layer}post_attention_layernorm.dense."),
        (f"{LLM}final_norm_1/Dense_0/", "", f"{EXPERT}model.norm.dense."),
    ):
        yield Row(f"{path}kernel", f"{stack}expert modulation", f"{key}weight", "modulation expert")
        yield Row(f"{path}bias", f"{stack}modulation", f"{key}bias", "modulation")
    for name, inputs, outputs in (
        ("action_in_proj", "action", "expert"),
        ("action_out_proj", "expert", "action"),
        ("time_mlp_in", "expert", "time"),
        ("time_mlp_out", "time", "expert"),
    ):
        yield Row(f"{name}/kernel", f"{inputs} {outputs}", f"{name}.weight", f"{outputs} {inputs}")
        yield Row(f"{name}/bias", outputs, f"{name}.bias", outputs)


ROWS = {row.path: row for row in (*_vision_rows(), *_language_rows(), *_expert_rows())}


def read_sizes(shapes: Mapping[str, tuple[int, ...]], source: str) -> dict[str, int]:
    """Read the size of each axis off the arrays' shapes.

    Raises ValueError, which names `source` and lists all arrays that are missing, that openpi's pi0.5 does
    not have, or whose shape contradicts the others'.
    """
    sizes = dict(KNOWN_SIZES)
    misshaped = []
    for path, row in ROWS.items():
        axes, shape = row.axes.split(), shapes.get(path)
        if shape is None:
            continue
        if len(shape) == len(axes):
            for axis, size in zip(axes, shape, strict=True):
                sizes.setdefault(axis, size)
        expected = [sizes.get(axis) for axis in axes]
        if list(shape) != expected:
            misshaped.append(f"{path}: expected ({row.axes}) {expected}, got {list(shape)}")
    problems = {
        "missing": [path for path in ROWS if path not in shapes],
        "unexpected": [path for path in shapes if path not in ROWS],
        "of another shape": misshaped,
    }
    if any(problems.values()):
        lists = "".join(listing(title, names) for title, names in problems.items() if names)
        raise ValueError(
            f"{source} does not hold openpi's pi0.5:{lists}\n{_way_out(problems['unexpected'])}; "
            "nothing was written"
        )
    return sizes


def _way_out(unexpected: list[str]) -> str:
    if any("lora" in path for path in unexpected):
        return "merge the LoRA adapters into the weights first"
    if any(path.startswith("state_proj/") for path in unexpected):
        return "this is pi0, another network; convert a pi0.5"
    return "check that SRC is a whole checkpoint of openpi's pi0.5"


def derive_dims(sizes: Mapping[str, int], horizon: int, source: str) -> Pi05Dims:
    """Build the network's dims from the sizes of axes; ValueError, naming `source`, where they do not fit."""
    expected = {
        "patch_x": sizes["patch_y"],
        "positions": math.isqrt(sizes["positions"]) ** 2,  # of a square image
        "vision": sizes["vision_heads"] * sizes["vision_head_dim"],
        "modulation": 3 * sizes["expert"],  # scale, shift and gate
        "time": sizes["expert"],
    }
    for axis, size in expected.items():
        if sizes[axis] != size:
            raise ValueError(f"{axis} must be {size}, got {sizes[axis]} in {source}; this is another network")
    for axis in ("layers", "vision_layers"):
        if sizes[axis] > MAX_LAYERS:
            raise ValueError(f"{axis} must be <= {MAX_LAYERS}, got {sizes[axis]} in {source}; it is damaged")
    shared = {"depth": sizes["layers"]}
    shared |= {"num_heads": sizes["heads"], "num_kv_heads": sizes["kv_heads"], "head_dim": sizes["head_dim"]}
    native = {
        "vocab_size": sizes["vocab"],
        "vision": {
            "intermediate_size": sizes["vision_mlp"],
            "hidden_size": sizes["vision"],
            "layers": sizes["vision_layers"],
            "heads": sizes["vision_heads"],
        },
        "prefix": shared | {"width": sizes["width"], "mlp_dim": sizes["mlp"]},
        "expert": shared | {"width": sizes["expert"], "mlp_dim": sizes["expert_mlp"]},
        "action_horizon": horizon,
        "action_dim": sizes["action"],
        "max_token_len": OPENPI_MAX_TOKEN_LEN,
        "image_size": math.isqrt(sizes["positions"]) * sizes["patch_y"],
        "patch_size": sizes["patch_y"],
        "cameras": OPENPI_CAMERAS,
        "masked_cameras": LIBERO_MASKED_CAMERAS,
    }
    return Pi05Dims.from_native(native, source)
