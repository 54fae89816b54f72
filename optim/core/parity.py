"""Parity: how far an optimised stage is from the one it replaces, and the error when that is too far."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from optim.base import Args

# Largest relative error of a stage's outputs against the stage that it replaces, by the engine's precision.
TOLERANCE = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.05, "fp8": 0.20}

CACHE_DIMS = 5


class ParityError(RuntimeError):
    """An optimised stage computes something else."""


@dataclass(frozen=True)
class Parity:
    """The worst output of the worst call.

    Attributes:
        rel_error: |output - reference| / |reference|, Euclidean norms over a whole output.
        cosine: between the two, flattened.
        max_abs: largest absolute difference of one number.
    """

    rel_error: float
    cosine: float
    max_abs: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def compare(output: Tensor, reference: Tensor) -> Parity:
    """Compute in float64 how far one tensor is from another.

    Raises:
        ParityError: shapes differ, or one of them is not finite.
    """
    if output.shape != reference.shape:
        raise ParityError(f"shape must be {tuple(reference.shape)}, got {tuple(output.shape)}")
    a, b = output.double().flatten(), reference.double().flatten()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ParityError("a number is not finite")
    if torch.equal(a, b):
        return Parity(0.0, 1.0, 0.0)
    difference = a - b
    norm = b.norm().item()
    rel_error = difference.norm().item() / norm if norm else math.inf
    cosine = (a @ b).item() / norm / a.norm().item() if norm and a.any() else 0.0
    return Parity(rel_error, cosine, difference.abs().max().item())


def worst(parities: Iterable[Parity]) -> Parity:
    """Take the largest errors and the smallest cosine."""
    each = list(parities)
    return Parity(max(p.rel_error for p in each), min(p.cosine for p in each), max(p.max_abs for p in each))


def stage_parity(outputs: Any, reference: Any) -> Parity:
    """Compute the worst parity of a stage's outputs.

    Masks must be equal, and a missing one must be missing. Keys and values are compared layer by layer: over
    all of them, one broken layer would hardly show.

    Raises:
        ParityError: the outputs are not of the same kind.
    """
    parities = []
    for i, (output, expected) in enumerate(zip(_outputs(outputs), _outputs(reference), strict=True)):
        if output is None or expected is None or expected.dtype == torch.bool:
            if not _same_mask(output, expected):
                raise ParityError(f"output {i} is a mask that differs")
        else:
            parities += [compare(a, b) for a, b in zip(_layers(output), _layers(expected), strict=True)]
    return worst(parities)


@torch.no_grad()
def require_parity(
    engine: Callable[..., Any], stage: Callable[..., Any], examples: Sequence[Args], tolerance: float
) -> Parity:
    """Compute the worst parity of `engine` with `stage` over the examples.

    Raises:
        ParityError: its relative error is above `tolerance`.
    """
    # outputs are compared before the next call, which may overwrite an engine's buffers
    parity = worst(stage_parity(engine(*args), stage(*args)) for args in examples)
    if not parity.rel_error <= tolerance:
        raise ParityError(
            f"relative error must be <= {tolerance}, got {parity.rel_error:.3g} "
            f"(cosine {parity.cosine:.6f}, max abs {parity.max_abs:.3g}) over {len(examples)} calls; "
            "the engine computes something else: check its scales and its precision"
        )
    return parity


def _same_mask(mask: Tensor | None, expected: Tensor | None) -> bool:
    if mask is None or expected is None:
        return mask is expected
    return torch.equal(mask, expected)


def _layers(output: Tensor) -> tuple[Tensor, ...]:
    """Split a KV cache (L, B, G, P, D) into its layers; leave any other output whole."""
    return output.unbind(0) if output.ndim == CACHE_DIMS else (output,)


def _outputs(result: Any) -> tuple[Tensor | None, ...]:
    return result if isinstance(result, tuple) else (result,)
