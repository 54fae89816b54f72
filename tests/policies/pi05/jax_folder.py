"""Small JAX checkpoints as openpi and orbax lay them out, made from a network in openpi's PyTorch layout.

The way back is written out array by array, with NumPy's own stack, transpose and reshape, so that it shares
nothing with the table that it tests. Heads are (heads, head_dim), layers are the first axis.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorstore
from numpy.typing import DTypeLike, NDArray

from policies.pi05.dims import Pi05Dims

Arrays = dict[str, NDArray[np.float32]]
FORMS = ("tree", "nnx", "bf16", "plain")  # as published; as openpi's trainer saves; bfloat16; without OCDBT
BF16 = ml_dtypes.bfloat16
PALIGEMMA = "paligemma_with_expert.paligemma."
TOWER = f"{PALIGEMMA}model.vision_tower.vision_model."
LANGUAGE, EXPERT = f"{PALIGEMMA}model.language_model.", "paligemma_with_expert.gemma_expert.model."


def to_jax(tensors: Mapping[str, NDArray[np.float32]], dims: Pi05Dims) -> Arrays:
    """Return openpi's JAX arrays of a network, by their path in the tree."""
    arrays: Arrays = {}
    _add_vision(arrays, tensors, dims)
    llm = "PaliGemma/llm/"
    arrays[f"{llm}embedder/input_embedding"] = tensors[f"{PALIGEMMA}lm_head.weight"]
    arrays[f"{llm}final_norm/scale"] = tensors[f"{LANGUAGE}norm.weight"]
    arrays[f"{llm}final_norm_1/Dense_0/kernel"] = tensors[f"{EXPERT}norm.dense.weight"].T
    arrays[f"{llm}final_norm_1/Dense_0/bias"] = tensors[f"{EXPERT}norm.dense.bias"]
    _add_gemma(arrays, tensors, dims, LANGUAGE, "")
    _add_gemma(arrays, tensors, dims, EXPERT, "_1")
    for name in ("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out"):
        arrays[f"{name}/kernel"] = tensors[f"{name}.weight"].T
        arrays[f"{name}/bias"] = tensors[f"{name}.bias"]
    return arrays


def _stack(
    tensors: Mapping[str, NDArray[np.float32]], layers: str, number: int, name: str
) -> NDArray[np.float32]:
    return np.stack([tensors[f"{layers}{layer}.{name}"] for layer in range(number)])


def _add_vision(arrays: Arrays, tensors: Mapping[str, NDArray[np.float32]], dims: Pi05Dims) -> None:
    img, width, heads = "PaliGemma/img/", dims.vision.hidden_size, dims.vision.heads
    block = f"{img}Transformer/encoderblock/"

    def stack(name: str) -> NDArray[np.float32]:
        return _stack(tensors, f"{TOWER}encoder.layers.", dims.vision.layers, name)

    patch = tensors[f"{TOWER}embeddings.patch_embedding.weight"]
    arrays[f"{img}embedding/kernel"] = patch.transpose(2, 3, 1, 0)
    arrays[f"{img}embedding/bias"] = tensors[f"{TOWER}embeddings.patch_embedding.bias"]
    arrays[f"{img}pos_embedding"] = tensors[f"{TOWER}embeddings.position_embedding.weight"][None]
    for number in (0, 1):
        arrays[f"{block}LayerNorm_{number}/scale"] = stack(f"layer_norm{number + 1}.weight")
        arrays[f"{block}LayerNorm_{number}/bias"] = stack(f"layer_norm{number + 1}.bias")
        dense = f"{block}MlpBlock_0/Dense_{number}/"
        arrays[f"{dense}kernel"] = stack(f"mlp.fc{number + 1}.weight").transpose(0, 2, 1)
        arrays[f"{dense}bias"] = stack(f"mlp.fc{number + 1}.bias")
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        attention = f"{block}MultiHeadDotProductAttention_0/{name}/"
        kernel = stack(f"self_attn.{letter}_proj.weight").transpose(0, 2, 1)
        arrays[f"{attention}kernel"] = kernel.reshape(-1, width, heads, width // heads)
        arrays[f"{attention}bias"] = stack(f"self_attn.{letter}_proj.bias").reshape(-1, heads, width // heads)
    out = f"{block}MultiHeadDotProductAttention_0/out/"
    kernel = stack("self_attn.out_proj.weight").transpose(0, 2, 1)
    arrays[f"{out}kernel"] = kernel.reshape(-1, heads, width // heads, width)
    arrays[f"{out}bias"] = stack("self_attn.out_proj.bias")
    arrays[f"{img}Transformer/encoder_norm/scale"] = tensors[f"{TOWER}post_layernorm.weight"]
    arrays[f"{img}Transformer/encoder_norm/bias"] = tensors[f"{TOWER}post_layernorm.bias"]
    projector = f"{PALIGEMMA}model.multi_modal_projector.linear."
    arrays[f"{img}head/kernel"] = tensors[f"{projector}weight"].T
    arrays[f"{img}head/bias"] = tensors[f"{projector}bias"]


def _add_gemma(
    arrays: Arrays, tensors: Mapping[str, NDArray[np.float32]], dims: Pi05Dims, head: str, suffix: str
) -> None:
    gemma = dims.expert if suffix else dims.prefix
    depth, width = gemma.depth, gemma.width
    heads, kv_heads, head_dim = gemma.num_heads, gemma.num_kv_heads, gemma.head_dim
    layers = "PaliGemma/llm/layers/"

    def stack(name: str) -> NDArray[np.float32]:
        return _stack(tensors, f"{head}layers.", depth, name)

    def split(letter: str, number: int) -> NDArray[np.float32]:
        """(layers, number of heads, width, head_dim)."""
        weight = stack(f"self_attn.{letter}_proj.weight").reshape(depth, number, head_dim, width)
        return weight.transpose(0, 1, 3, 2)

    arrays[f"{layers}attn/q_einsum{suffix}/w"] = split("q", heads)
    arrays[f"{layers}attn/kv_einsum{suffix}/w"] = np.stack(
        [split("k", kv_heads), split("v", kv_heads)], axis=1
    )
    out = stack("self_attn.o_proj.weight").transpose(0, 2, 1)
    arrays[f"{layers}attn/attn_vec_einsum{suffix}/w"] = out.reshape(depth, heads, head_dim, width)
    gate_up = [stack(f"mlp.{name}_proj.weight").transpose(0, 2, 1) for name in ("gate", "up")]
    arrays[f"{layers}mlp{suffix}/gating_einsum"] = np.stack(gate_up, axis=1)
    arrays[f"{layers}mlp{suffix}/linear"] = stack("mlp.down_proj.weight").transpose(0, 2, 1)
    for jax, norm in (
        ("pre_attention_norm", "input_layernorm"),
        ("pre_ffw_norm", "post_attention_layernorm"),
    ):
        if suffix:
            dense = f"{layers}{jax}{suffix}/Dense_0/"
            arrays[f"{dense}kernel"] = stack(f"{norm}.dense.weight").transpose(0, 2, 1)
            arrays[f"{dense}bias"] = stack(f"{norm}.dense.bias")
        else:
            arrays[f"{layers}{jax}/scale"] = stack(f"{norm}.weight")


def write_arrays(
    params: Path,
    arrays: Mapping[str, NDArray[np.float32]],
    form: str = "tree",
    *,
    dtype: DTypeLike | None = None,
    root: str = "params.",
    driver: str = "zarr",
    store_zeros: bool = True,
    cut: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple,
) -> None:
    """Write the store that orbax would, in one of `FORMS`.

    Args:
        dtype: of the stored numbers; None is the form's.
        root: before the name of every array.
        driver: zarr (version 2, orbax's default) or zarr3.
        store_zeros: whether chunks of zeros are stored, and _METADATA says so; older orbax does not.
        cut: from the shape of an array to that of its chunks.
    """
    params.mkdir(parents=True)
    folder = {"driver": "file", "path": f"{params}/"}
    store = folder if form == "plain" else {"driver": "ocdbt", "base": folder, "path": ""}
    leaf = ".value" if form == "nnx" else ""
    dtype = np.dtype(dtype or (BF16 if form == "bf16" else np.float32))
    for path, array in arrays.items():
        name = root + path.replace("/", ".") + leaf
        chunks = list(cut(array.shape))
        spec = {
            "driver": driver,
            "kvstore": {**store, "path": f"{store['path']}{name}/"},
            "schema": {"chunk_layout": {"chunk": {"shape": chunks}}}
            | ({} if store_zeros else {"fill_value": 0.0}),
            "store_data_equal_to_fill_value": store_zeros,
        }
        opened = tensorstore.open(spec, create=True, dtype=dtype.name, shape=array.shape).result()
        opened.write(array.astype(dtype)).result()
    about = {"use_ocdbt": form != "plain", "use_zarr3": driver == "zarr3"}
    if store_zeros:
        about["store_array_data_equal_to_fill_value"] = True
    (params / "_METADATA").write_text(json.dumps(about))


def write_norm_stats(step: Path, stats: Mapping[str, object]) -> None:
    """Write the statistics beside params/, where openpi's trainer puts those of LIBERO."""
    folder = step / "assets" / "physical-intelligence" / "libero"
    folder.mkdir(parents=True)
    (folder / "norm_stats.json").write_text(json.dumps({"norm_stats": stats}))
