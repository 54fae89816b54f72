"""Sizes that the shapes of a checkpoint's tensors imply, compared with the configuration's before a build."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from policies.pi05.checkpoint_keys import EMBEDDING_KEY, EXPERT, LANGUAGE, TIED_EMBEDDING_KEY, TOWER
from policies.pi05.dims import Pi05Dims
from policies.text import brief, shorten

_LAYER = re.compile(r"(.*\.layers)\.([^.]*)\.(.*)")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")  # of a layer, below `MAX_LAYERS`
_STACKS = {
    "vision.layers": f"{TOWER}encoder.layers",
    "prefix.depth": f"{LANGUAGE}layers",
    "expert.depth": f"{EXPERT}model.layers",
}
_VISION, _PREFIX, _EXPERT = _STACKS.values()

# size -> axes that have it; a key without its layer's number stands for all layers
_AXES: dict[str, tuple[tuple[str, int], ...]] = {
    "vocab_size": ((EMBEDDING_KEY, 0), (TIED_EMBEDDING_KEY, 0)),
    "action_dim": (("action_in_proj.weight", 1), ("action_out_proj.weight", 0)),
    "patch_size": tuple((f"{TOWER}embeddings.patch_embedding.weight", axis) for axis in (2, 3)),
    "tokens_per_image": ((f"{TOWER}embeddings.position_embedding.weight", 0),),
    "vision.hidden_size": (
        (f"{TOWER}embeddings.position_embedding.weight", 1),
        (f"{_VISION}.self_attn.q_proj.weight", 1),
    ),
    "vision.intermediate_size": ((f"{_VISION}.mlp.fc1.weight", 0), (f"{_VISION}.mlp.fc2.weight", 1)),
    "prefix.width": ((EMBEDDING_KEY, 1), (TIED_EMBEDDING_KEY, 1), (f"{_PREFIX}.self_attn.k_proj.weight", 1)),
    "prefix.mlp_dim": ((f"{_PREFIX}.mlp.gate_proj.weight", 0), (f"{_PREFIX}.mlp.down_proj.weight", 1)),
    "prefix.num_kv_heads * head_dim": ((f"{_PREFIX}.self_attn.k_proj.weight", 0),),
    "prefix.num_heads * head_dim": ((f"{_PREFIX}.self_attn.q_proj.weight", 0),),
    "expert.width": (("action_in_proj.weight", 0), (f"{_EXPERT}.self_attn.k_proj.weight", 1)),
    "expert.mlp_dim": ((f"{_EXPERT}.mlp.gate_proj.weight", 0), (f"{_EXPERT}.mlp.down_proj.weight", 1)),
    "expert.num_kv_heads * head_dim": ((f"{_EXPERT}.self_attn.k_proj.weight", 0),),
    "expert.num_heads * head_dim": ((f"{_EXPERT}.self_attn.q_proj.weight", 0),),
}

# what lerobot's config.json calls them, for errors
_NAMES = {
    "action_dim": "action_dim (max_action_dim of lerobot)",
    "tokens_per_image": "tokens_per_image (of image_size, image_resolution of lerobot)",
}


def check_sizes(shapes: Mapping[str, tuple[int, ...]], key_prefix: str, dims: Pi05Dims, path: Path) -> None:
    """Raise ValueError for sizes that no tensor of the file has, or layers in another number or with gaps.

    A network of these sizes can be built afterwards without more layers than the file has. A size is right
    where any of its tensors has it: a single tensor of another shape is for the list of all tensors.

    Args:
        shapes: by key.
        key_prefix: what the layout puts before every key; keys without it are not looked at.
    """
    layers: dict[str, set[int]] = {stack: set() for stack in _STACKS.values()}
    strangers = []
    seen: dict[tuple[str, int], set[int]] = {}
    for key, shape in shapes.items():
        if not key.startswith(key_prefix):
            continue
        bare = key.removeprefix(key_prefix)
        if (layer := _LAYER.fullmatch(bare)) is not None:
            stack, number, rest = layer.groups()
            bare = f"{stack}.{rest}"
            if stack in layers and _NUMBER.fullmatch(number):
                layers[stack].add(int(number))
            elif stack in layers:
                strangers.append(key)
        for axis, size in enumerate(shape):
            seen.setdefault((bare, axis), set()).add(size)
    for stack, numbers in layers.items():
        known = (key_prefix + f"{stack}.{number}." for number in sorted(numbers - set(range(len(numbers)))))
        strangers += [f"{start}*" for start in known]
    if strangers:
        raise ValueError(
            f"{path} must number the layers of a stack from 0 without a gap, got "
            f"{shorten(map(brief, strangers))}; "
            "these tensors belong to no layer: save or download the checkpoint again; nothing was loaded"
        )
    if not any(layers.values()):
        raise ValueError(
            f"{path} has no layers of this layout: no key like {key_prefix}{_PREFIX}.0.*, its first is "
            f"{min(shapes, default=None)}; check the layout (`checkpoint.layout`); nothing was loaded"
        )
    implied = {size: {len(layers[stack])} for size, stack in _STACKS.items()} | {
        size: set().union(*(seen.get(axis, set()) for axis in axes)) for size, axes in _AXES.items()
    }
    differences = [
        f"{_NAMES.get(size, size)} is {' or '.join(map(str, sorted(implied[size])))} in the file, "
        f"{configured!r:.100} as configured"
        for size, configured in _configured(dims)
        if implied[size] and configured not in implied[size]
    ]
    if differences:
        raise ValueError(
            f"{path} holds a network of other sizes: {'; '.join(differences)}; "
            "check that config.json belongs to these weights (openpi and lerobot name sizes there by "
            "paligemma_variant and action_expert_variant); nothing was loaded"
        )


def _configured(dims: Pi05Dims) -> Iterator[tuple[str, int]]:
    for stack, gemma in (("prefix", dims.prefix), ("expert", dims.expert)):
        yield f"{stack}.depth", gemma.depth
        yield f"{stack}.width", gemma.width
        yield f"{stack}.mlp_dim", gemma.mlp_dim
        yield f"{stack}.num_heads * head_dim", gemma.num_heads * gemma.head_dim
        yield f"{stack}.num_kv_heads * head_dim", gemma.num_kv_heads * gemma.head_dim
    yield "vision.layers", dims.vision.layers
    yield "vision.hidden_size", dims.vision.hidden_size
    yield "vision.intermediate_size", dims.vision.intermediate_size
    for size in ("vocab_size", "action_dim", "patch_size", "tokens_per_image"):
        yield size, getattr(dims, size)
