"""Backends: what makes a stage faster, or raises; and the counters that prove it ran.

A backend is a frozen dataclass of options. Called with a `StageContext`, it returns a `CountedStage` or
raises.
`apply_backends` refuses one that hands the bare stage back, wrapped or not, and one that was not compared
with it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optim.options import ON_MISMATCH
from policies.pi05.dims import STAGES

Args = tuple[Tensor | None, ...]
"""Arguments of one call of a stage, in the order of its `forward`."""

FALLBACK = "eager (fallback)"
LOGGED_MISSES = (1, 10, 100, 1_000, 10_000, 100_000)  # every one would drown the rest of the log

log = logging.getLogger(__name__)


class StageMismatch(RuntimeError):
    """Inputs are not what the engine was built for: say which one, from what to what."""


class BackendError(RuntimeError):
    """A backend could not engage; names the stage and the backend."""


@dataclass(frozen=True)
class Reason:
    """Why a backend cannot run on this machine.

    Attributes:
        text: the same for every stage.
        way_out: what to choose instead, where `text` does not say it.
    """

    text: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.way_out}" if self.way_out else self.text


class CannotRun(ValueError):
    """What is asked for cannot run on this machine.

    Attributes:
        reasons: by stage, and of `images`.
    """

    # with a default, because Ray's processes pickle it: made of its message, then filled
    def __init__(self, message: str, reasons: Mapping[str, Reason] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


@dataclass(frozen=True)
class StageContext:
    """What a backend works on.

    Attributes:
        name: vision, prefix or denoise.
        stage: the eager module; a backend leaves it as it is.
        examples: arguments of calls to this stage, captured from real observations: at least one for every
            combination of shapes that is to be served.
        amax: of each linear of the stage, by its name in it, the largest absolute input over the calibration
            observations (`optim.calibrate`); empty unless the backend has `needs_amax`.
        weights_sha256: of the checkpoint, for caches.
    """

    name: str
    stage: nn.Module
    examples: Sequence[Args] = ()
    amax: Mapping[str, float] = field(default_factory=dict)
    weights_sha256: str = ""


class CountedStage:
    """A stage as the policy calls it: an engine and its call counters.

    Attributes:
        backend: what serves the calls (`eager`, `cuda_graph`, ...).
        details: facts for the record: precision, engine size, flavour, parity.
        engine: what serves the calls.
        fallback: what serves the calls that the engine refuses; None makes them errors.
        calls: calls that the engine served.
        misses: calls that it refused and the fallback served.
        refused: calls that it refused and nobody served.
        served_by: who served the last call: `backend`, or FALLBACK.

    Non-obvious behaviors:
        Without a `fallback`, a `StageMismatch` is the caller's error. With one, the fallback serves that
        call, which is counted in `misses` and logged, ever more rarely. Other errors of the engine are always
        raised. Outputs may be an engine's own buffers, which its next call overwrites.
    """

    def __init__(
        self,
        backend: str,
        engine: Callable[..., Any],
        *,
        fallback: Callable[..., Any] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.details = dict(details or {})
        self.fallback = fallback
        self.calls = 0
        self.misses = 0
        self.refused = 0
        self.served_by = backend
        self.engine = engine

    def __call__(self, *args: Tensor | None) -> Any:
        """Call the engine, or the fallback where the engine was built for other inputs.

        Raises:
            StageMismatch: the engine was built for other inputs and there is no fallback.
        """
        try:
            result = self.engine(*args)
        except StageMismatch as mismatch:
            if self.fallback is None:
                self.refused += 1
                hint = "optim.on_mismatch=fallback would have eager serve such calls, counted"
                raise StageMismatch(f"{mismatch}; {hint}") from mismatch
            self.misses += 1
            self.served_by = FALLBACK
            if self.misses in LOGGED_MISSES:
                log.warning("%s missed a call (%d so far): %s", self.backend, self.misses, mismatch)
            return self.fallback(*args)
        self.calls += 1
        self.served_by = self.backend
        return result


class Backend(ABC):
    """One technique for one stage; subclasses are frozen dataclasses of its options.

    A subclass overrides a property by another, or by a ClassVar where no option decides.
    """

    jacobians: ClassVar[tuple[str, ...]] = ()  # of guidance towards an old chunk, which denoise engines take
    compiles: ClassVar[bool] = False  # with Inductor or Triton, whose code is kept (`optim.core.code_cache`)

    @property
    def needs_examples(self) -> bool:
        """Whether it reads `StageContext.examples`."""
        return True

    @property
    def needs_amax(self) -> bool:
        """Whether it reads `StageContext.amax`."""
        return False

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027  most run anywhere
        """Raise if this machine cannot run the backend; cheap, called before anything is loaded.

        Args:
            name: of the stage.
            device, dtype: where and in which precision the policy runs.
        """

    @property
    def serves_batches(self) -> bool:
        """Whether its engines take several requests at once.

        Where they do not, examples are of one request, and nobody asks for more (`eval.runners.ray.serving`).
        """
        return True

    @abstractmethod
    def __call__(self, source: StageContext) -> CountedStage:
        """Build an optimised stage; raise where that is not possible."""


def check_backends(backends: Mapping[str, Backend], device: torch.device, dtype: torch.dtype) -> None:
    """Raise CannotRun for all backends that this machine cannot run."""
    reasons: dict[str, Reason] = {}
    for name, chosen in backends.items():
        try:
            chosen.check(name, device, dtype)
        except CannotRun as error:
            reasons |= error.reasons or {name: Reason(str(error))}
        except Exception as error:  # noqa: BLE001  the other stages have reasons of their own; all are raised
            reasons[name] = Reason(str(error))
    if reasons:
        each = (
            f"optim.{name}={backends[name]!r} cannot run here: {reason}" for name, reason in reasons.items()
        )
        raise CannotRun("; ".join(each), reasons)


def apply_backends(
    sources: Mapping[str, StageContext], backends: Mapping[str, Backend], *, on_mismatch: str = "raise"
) -> dict[str, CountedStage]:
    """Let each stage's backend optimise it.

    Args:
        sources: of each stage; `Pi05Policy.example_inputs` makes their examples.
        on_mismatch: raise, or fallback: the eager stage serves a call that the engine was not built for, and
            the miss is counted and logged.

    Raises:
        ValueError: a stage without a backend, a backend without a stage, or an unknown `on_mismatch`.
        BackendError: a backend raised; or returned something that does not count, that is the eager stage, or
            that was not compared with it (`engines.serve` does, and says so in the details).
    """
    for what, mapping in (("sources", sources), ("backends", backends)):
        if set(mapping) != set(STAGES):
            raise ValueError(f"{what} must name exactly {STAGES}, got {tuple(mapping)}")
    if on_mismatch not in ON_MISMATCH:
        raise ValueError(f"on_mismatch must be one of {', '.join(ON_MISMATCH)}, got {on_mismatch!r}")
    optimised = {}
    for name in STAGES:
        label = f"optim.{name}={backends[name]!r}"
        try:
            result = backends[name](sources[name])
        except Exception as error:
            raise BackendError(f"{label} did not engage: {type(error).__name__}: {error}") from error
        if not isinstance(result, CountedStage):
            raise BackendError(f"{label} must return a CountedStage, got {type(result).__name__}")
        if backends[name].needs_examples:
            if result.engine is sources[name].stage:
                raise BackendError(
                    f"{label} must return another engine than the eager stage, which it was given"
                )
            if "parity" not in result.details:
                raise BackendError(
                    f"{label} must compare its engine with the stage; let optim.core.engines.serve do it"
                )
        if on_mismatch == "fallback":
            result.fallback = sources[name].stage
        optimised[name] = result
    return optimised
