"""Random weights of any size: for tests and for timing, never for success rates."""

import hashlib
import json
import math

import torch
from torch import Tensor, nn

from policies.files import ROOT
from policies.pi05.checkpoint_layouts import assign, meta_stages, named_tensors, parameter_dtype
from policies.pi05.dims import PI05_SMALL, Pi05Dims

TOKENIZER_PATH = ROOT / "policies" / "reference" / "weights" / "tokenizer.model"


def random_stages(
    dims: Pi05Dims, denoise_steps: int, seed: int, device: torch.device, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Draw stages whose activations stay of order one, so that bfloat16 is safe at full size.

    Non-obvious behaviors:
        Small networks are drawn on the CPU, hence equal on every device and in every precision up to
        rounding. Larger ones are drawn on `device`, one float32 tensor at a time: 3.3 B numbers take a second
        on a GPU, and depend on which kind of device drew them.
    """
    generator = torch.Generator(_source(dims, device)).manual_seed(seed)
    stages = meta_stages(dims, denoise_steps)
    tensors: dict[str, dict[str, Tensor]] = {stage: {} for stage in stages}
    for _, (stage, name, shape) in sorted(named_tensors(stages).items()):
        drawn = _draw(name, shape.shape, generator)
        tensors[stage][name] = drawn.to(device, parameter_dtype(stage, name, dtype))
    assign(stages, tensors)
    return stages


def recipe_sha256(dims: Pi05Dims, seed: int, device: torch.device) -> str:
    """Hash what determines the weights; the weights themselves are too many to hash each time."""
    recipe = {"dims": dims.to_native(), "seed": seed, "drawn_on": _source(dims, device).type}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _source(dims: Pi05Dims, device: torch.device) -> torch.device:
    return torch.device("cpu") if dims.prefix == PI05_SMALL.prefix else device


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    normal = torch.empty(shape, device=generator.device).normal_(generator=generator)
    if name.endswith("layernorm.weight") and name != "post_layernorm.weight":
        return normal.mul_(0.05)  # Gemma's norms multiply by 1 + weight
    if name == "post_layernorm.weight" or name.endswith(("layer_norm1.weight", "layer_norm2.weight")):
        return normal.mul_(0.05).add_(1.0)
    if name.endswith("bias"):
        return normal.mul_(0.02)
    if name.endswith("position_embedding.weight"):
        return normal.mul_(0.5)
    # of an embedding, fan-in is its width, whose square root the prefix multiplies back
    fan_in = shape[1:].numel()
    return normal.mul_(1.0 / math.sqrt(fan_in))
