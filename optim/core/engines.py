"""One engine per combination of input shapes, checked against the stage, counted; others are refused."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from optim.base import Args, CountedStage, StageContext, StageMismatch
from optim.core.parity import require_parity

Signature = tuple[tuple[torch.Size, torch.dtype, torch.device] | None, ...]
Build = Callable[[Args], Callable[..., Any]]


def signature(args: Args) -> Signature:
    """Read shape, dtype and device of each argument; None where there is none."""
    return tuple(None if arg is None else (arg.shape, arg.dtype, arg.device) for arg in args)


class Engines:
    """Callables by the signature of their inputs.

    Raises:
        StageMismatch: at a call whose signature no engine has; names the first input that differs from the
            nearest engine's, and both.
    """

    def __init__(self, name: str, engines: Mapping[Signature, Callable[..., Any]]) -> None:
        self.name = name
        self.engines = dict(engines)

    def __call__(self, *args: Tensor | None) -> Any:
        engine = self.engines.get(signature(args))
        if engine is None:
            raise StageMismatch(self._explain(signature(args)))
        return engine(*args)

    def _explain(self, got: Signature) -> str:
        def differing(built: Signature) -> list[int]:
            if len(built) != len(got):
                return [min(len(built), len(got))]
            return [i for i, (old, new) in enumerate(zip(built, got, strict=True)) if old != new]

        nearest = min(self.engines, key=lambda built: len(differing(built)))
        i = differing(nearest)[0]
        old, new = (spell(parts[i]) if i < len(parts) else "absent" for parts in (nearest, got))
        others = len(self.engines) - 1
        more = f" (and {others} other combinations)" if others else ""
        return f"{self.name} input {i} is {new}, the engine was built for {old}{more}"


def spell(part: tuple[torch.Size, torch.dtype, torch.device] | None) -> str:
    """Word one input: `(1, 968, 2048) bfloat16 on cuda:0`."""
    if part is None:
        return "None"
    shape, dtype, device = part
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')} on {device}"


@torch.no_grad()
def serve(
    source: StageContext,
    backend: str,
    build: Build,
    *,
    tolerance: float,
    details: Mapping[str, Any] | None = None,
) -> CountedStage:
    """Build one engine for each signature among the examples and return them as a stage.

    Args:
        build: makes the engine for calls like these arguments.
        tolerance: largest relative error against `source.stage`, see `optim.core.parity`.
        details: facts for the record; number of engines, build time and parity are added.

    Raises:
        ValueError: there are no examples.
        ParityError: an engine computes something else.
    """
    if not source.examples:
        raise ValueError(f"{source.name} has no examples to take shapes from; capture a real observation")
    begin = time.perf_counter()
    engines: dict[Signature, Callable[..., Any]] = {}
    for args in source.examples:
        if signature(args) not in engines:
            engines[signature(args)] = build(args)
    build_s = time.perf_counter() - begin
    served = Engines(source.name, engines)
    parity = require_parity(served, source.stage, source.examples, tolerance)
    facts = {
        **(details or {}),
        "engines": len(engines),
        "build_s": round(build_s, 2),
        "parity": {**parity.to_dict(), "tolerance": tolerance, "examples": len(source.examples)},
    }
    return CountedStage(backend, served, details=facts)
