"""Recordings of another implementation: read one, and compare an output with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Expected = Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]]
"""Dtype and shape of tensors by name; None is any size."""


@dataclass(frozen=True)
class Comparison:
    """One output in one form.

    Attributes:
        max_abs: the largest difference.
        max_rel: that over the reference's largest magnitude.
        bound: of max_abs; None where the command's --rtol bounds max_rel.
    """

    form: str
    output: str
    max_abs: float
    max_rel: float
    bound: float | None = None

    def passes(self, rtol: float) -> bool:
        return self.max_rel <= rtol if self.bound is None else self.max_abs <= self.bound


def compare_output(
    form: str, name: str, output: Tensor, reference: Tensor, bound: float | None = None
) -> Comparison:
    """Compare; ValueError for other shapes, or a reference of zeros alone."""
    if output.shape != reference.shape:
        raise ValueError(f"{form} {name} must have shape {list(reference.shape)}, got {list(output.shape)}")
    difference = (output.double() - reference.double()).abs().max().item()
    scale = reference.double().abs().max().item()
    if scale == 0.0:
        raise ValueError(f"{name} must not be all zero, or no difference is relative to it; record it again")
    return Comparison(form, name, difference, difference / scale, bound)


def read_recording(path: Path, writer: str) -> dict[str, Tensor]:
    """Read a safetensors file; FileNotFoundError or ValueError, with the program that `writer` names."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}, which holds inputs and outputs recorded from {writer}; record it"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}; record it again") from error


def check_tensors(recorded: Mapping[str, Tensor], expected: Expected, path: Path) -> None:
    """Raise ValueError for a recorded tensor of another dtype or shape."""
    for name, (dtype, shape) in expected.items():
        tensor = recorded[name]
        sizes_fit = len(tensor.shape) == len(shape) and all(
            want in (got, None) for got, want in zip(tensor.shape, shape, strict=True)
        )
        if tensor.dtype != dtype or not sizes_fit:
            raise ValueError(
                f"{name} must be {_spell(dtype, shape)}, "
                f"got {_spell(tensor.dtype, tuple(tensor.shape))} in {path}"
            )


def table(results: Sequence[Comparison], rtol: float) -> Iterator[str]:
    """Word one row per output and form."""
    yield f"{'form':<6}{'output':<26}{'max abs':>10}{'max rel':>10}{'bound':>14}  verdict"
    for result in results:
        bound = f"rel {rtol:.0e}" if result.bound is None else f"abs {result.bound:.0e}"
        verdict = "pass" if result.passes(rtol) else "FAIL"
        yield (
            f"{result.form:<6}{result.output:<26}{result.max_abs:>10.2e}{result.max_rel:>10.2e}{bound:>14}"
            f"  {verdict}"
        )


def _spell(dtype: torch.dtype, shape: tuple[int | None, ...]) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return f"{str(dtype).removeprefix('torch.')} [{sizes}]"
