"""Tensors of a checkpoint: the key and precision of each parameter; all are read or none."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from policies.files import replacing
from policies.pi05.checkpoint_keys import (
    EMBEDDING_KEY,
    EXPERT,
    LANGUAGE,
    PALIGEMMA,
    TIED_EMBEDDING_KEY,
    TOWER,
)
from policies.pi05.denoise import Denoise
from policies.pi05.dims import Pi05Dims
from policies.pi05.prefix import Prefix
from policies.pi05.vision import Vision
from policies.pi05.weight_files import WeightFiles, open_weights
from policies.pi05.weight_sizes import check_sizes
from policies.text import listing

# per stage: head of a parameter's name in the module -> head of its key in openpi's model.safetensors
_HEADS: dict[str, dict[str, str]] = {
    "vision": {
        "embeddings.": f"{TOWER}embeddings.",
        "layers.": f"{TOWER}encoder.layers.",
        "post_layernorm.": f"{TOWER}post_layernorm.",
        "projector.": f"{PALIGEMMA}model.multi_modal_projector.linear.",
    },
    "prefix": {"embedding.weight": EMBEDDING_KEY, "layers.": f"{LANGUAGE}layers."},
    "denoise": {"layers.": f"{EXPERT}model.layers.", "norm.": f"{EXPERT}model.norm."},
}


class _WithoutInit(TorchFunctionMode):
    """Leave out torch.nn.init, which takes half of a build's time to draw numbers that have no storage."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def meta_stages(dims: Pi05Dims, denoise_steps: int) -> dict[str, nn.Module]:
    """Build the three stages with shapes but no storage."""
    with torch.device("meta"), _WithoutInit():
        stages = {"vision": Vision(dims), "prefix": Prefix(dims), "denoise": Denoise(dims, denoise_steps)}
    for stage in stages.values():
        stage.eval().requires_grad_(False)
    return stages


def checkpoint_key(stage: str, name: str) -> str:
    """The key, in openpi's layout, of parameter `name` of a stage."""
    for head, key in _HEADS[stage].items():
        if name.startswith(head):
            return key + name.removeprefix(head)
    return name


def parameter_dtype(stage: str, name: str, dtype: torch.dtype) -> torch.dtype:
    """The precision of a parameter in a stage of precision `dtype`.

    float32 always: patch and position embeddings, all norms (adaRMS linears too), and the expert's heads,
    which openpi keeps outside of its bfloat16 part because x and t are float32.
    """
    is_norm = "norm" in name
    is_embedding = stage == "vision" and name.startswith("embeddings.")
    is_head = stage == "denoise" and not name.startswith("layers.")
    return torch.float32 if is_norm or is_embedding or is_head else dtype


def named_tensors(stages: Mapping[str, nn.Module]) -> dict[str, tuple[str, str, Tensor]]:
    """Checkpoint key to (stage, parameter name, parameter), for every parameter."""
    return {
        checkpoint_key(stage, name): (stage, name, tensor)
        for stage, module in stages.items()
        for name, tensor in module.state_dict().items()
    }


def unused_shapes(dims: Pi05Dims) -> dict[str, tuple[int, ...]]:
    """List keys that a checkpoint may hold and inference never reads, with their shapes.

    They are the expert's language head, and all that follows keys and values in the last prefix layer.
    """
    last, prefix = f"{LANGUAGE}layers.{dims.prefix.depth - 1}.", dims.prefix
    attention = prefix.num_heads * prefix.head_dim
    return {
        f"{EXPERT}lm_head.weight": (dims.vocab_size, dims.expert.width),
        f"{last}self_attn.q_proj.weight": (attention, prefix.width),
        f"{last}self_attn.o_proj.weight": (prefix.width, attention),
        f"{last}mlp.gate_proj.weight": (prefix.mlp_dim, prefix.width),
        f"{last}mlp.up_proj.weight": (prefix.mlp_dim, prefix.width),
        f"{last}mlp.down_proj.weight": (prefix.width, prefix.mlp_dim),
        f"{last}post_attention_layernorm.weight": (prefix.width,),
        f"{LANGUAGE}norm.weight": (prefix.width,),
    }


def load_stages(
    path: Path,
    key_prefix: str,
    dims: Pi05Dims,
    denoise_steps: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    untied: bool = False,
) -> dict[str, nn.Module]:
    """Load the stages from a safetensors file, or an index of shards, one tensor in flight at a time.

    The layout puts `key_prefix` before every key. Where `untied`, embed_tokens is the embedding if it is
    stored: lerobot >= 0.5 trains it apart from lm_head and reads it alone; elsewhere the two must be equal.

    Raises:
        FileNotFoundError: shards are not there.
        ValueError: files that `open_weights` refuses, a network of other sizes, or tensors that are missing,
            unexpected or of another shape (all are listed before one is read); or one that is not finite.
    """
    with open_weights(path) as weights:
        check_sizes(weights.shapes, key_prefix, dims, path)
        stages = meta_stages(dims, denoise_steps)
        wanted = named_tensors(stages)
        source = _match(weights.shapes, key_prefix, wanted, dims, path, untied)
        if not untied:
            _check_tied(weights, key_prefix, path)
        loaded: dict[str, dict[str, Tensor]] = {stage: {} for stage in stages}
        for key, (stage, name, _) in wanted.items():
            tensor = weights.tensor(source[key]).to(device, parameter_dtype(stage, name, dtype))
            check_finite(tensor, source[key], path)
            loaded[stage][name] = tensor
    assign(stages, loaded)
    return stages


def stores_both_embeddings(path: Path, key_prefix: str) -> bool:
    """Whether a file has embed_tokens and lm_head, which `load_stages` may take for one tensor or for two."""
    with open_weights(path) as weights:
        return {key_prefix + EMBEDDING_KEY, key_prefix + TIED_EMBEDDING_KEY} <= weights.shapes.keys()


def assign(stages: Mapping[str, nn.Module], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Make `tensors[stage][name]` the parameters of meta stages, without a copy."""
    for stage, module in stages.items():
        module.load_state_dict(tensors[stage], strict=True, assign=True)
        module.requires_grad_(False)


def save_weights(path: Path, stages: Mapping[str, nn.Module]) -> None:
    """Write the stages' parameters under openpi's keys, without `unused_shapes`."""
    tensors = {
        key: tensor.detach().cpu().contiguous() for key, (_, _, tensor) in named_tensors(stages).items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _match(
    shapes: Mapping[str, tuple[int, ...]],
    key_prefix: str,
    wanted: Mapping[str, tuple[str, str, Tensor]],
    dims: Pi05Dims,
    path: Path,
    untied: bool,
) -> dict[str, str]:
    """Map each wanted key to its key in the file."""
    allowed = {key: tuple(tensor.shape) for key, (_, _, tensor) in wanted.items()} | unused_shapes(dims)
    allowed[TIED_EMBEDDING_KEY] = allowed[EMBEDDING_KEY]
    source = {key: key_prefix + key for key in wanted}
    if (untied or source[EMBEDDING_KEY] not in shapes) and key_prefix + TIED_EMBEDDING_KEY in shapes:
        source[EMBEDDING_KEY] = key_prefix + TIED_EMBEDDING_KEY
    missing = [key for key in source.values() if key not in shapes]
    unexpected, misshaped = [], []
    for key, shape in shapes.items():
        bare = key.removeprefix(key_prefix)
        if not key.startswith(key_prefix) or bare not in allowed:
            unexpected.append(key)
        elif shape != allowed[bare]:
            misshaped.append(f"{key}: expected {list(allowed[bare])}, got {list(shape)}")
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        lists = "".join(listing(title, names) for title, names in problems.items() if names)
        raise ValueError(
            f"{path} does not hold this network:{lists}\n"
            "check the layout (`checkpoint.layout`), and that config.json belongs to these weights; "
            "nothing was loaded"
        )
    return source


def _check_tied(weights: WeightFiles, key_prefix: str, path: Path) -> None:
    head, embedding = key_prefix + EMBEDDING_KEY, key_prefix + TIED_EMBEDDING_KEY
    if not {head, embedding} <= weights.shapes.keys():
        return
    if not torch.equal(weights.tensor(head), weights.tensor(embedding)):
        raise ValueError(
            f"{path} stores {EMBEDDING_KEY} and {TIED_EMBEDDING_KEY} with different values, but they are "
            "one tied tensor; remove the stale one"
        )


def check_finite(tensor: Tensor, key: str, path: Path) -> None:
    """Raise ValueError for NaN or Inf: the extremes tell, in a twentieth of `isfinite`'s time."""
    smallest, largest = torch.aminmax(tensor)
    if math.isfinite((largest - smallest).item()):  # one wait for the device
        return
    places = (~torch.isfinite(tensor)).nonzero()
    if not len(places):  # the difference alone was too large
        return
    first = tuple(places[0].tolist())
    raise ValueError(
        f"{key} must be finite in {str(tensor.dtype).removeprefix('torch.')}, got {tensor[first].item()} at "
        f"{list(first)} ({len(places)} of {tensor.numel()} numbers) in {path}; such weights give no actions: "
        "take an earlier save, or download it again"
    )
