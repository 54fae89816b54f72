"""Passes: what makes a stage faster, or raises; and the counters that prove it ran.

A pass is a frozen dataclass of options. Called with a `StageSource`, it returns a `CountedStage` or raises.
`apply_passes` refuses one that hands the bare stage back, wrapped or not, and one that was not compared
with it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policies.pi05.stages import STAGES

Args = tuple[Tensor | None, ...]
"""Arguments of one call of a stage, in the order of its `forward`."""

ON_MISMATCH = ("raise", "fallback")
FALLBACK = "eager (fallback)"
LOGGED_MISSES = (1, 10, 100, 1_000, 10_000, 100_000)  # every one would drown the rest of the log

log = logging.getLogger(__name__)


class StageMismatch(RuntimeError):
    """Inputs are not what the engine was built for: say which one, from what to what."""


class PassError(RuntimeError):
    """A pass could not engage; names the stage and the pass."""


class CannotRun(PassError):
    """Passes cannot run on this machine.

    Attributes:
        reasons: by stage, what its pass raised.
    """

    def __init__(self, message: str, reasons: Mapping[str, Exception]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class StageSource:
    """What a pass works on.

    Attributes:
        name: vision, prefix or denoise.
        stage: the eager module; a pass leaves it as it is.
        examples: arguments of calls to this stage, captured from real observations: at least one for every
            combination of shapes that is to be served.
        amax: of each linear of the stage, by its name in it, the largest absolute input over the calibration
            observations (`optim.calibrate`); empty unless the pass has `needs_amax`.
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
        """Return what the engine returns.

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


class Pass(ABC):
    """One technique for one stage; subclasses are frozen dataclasses of its options.

    Attributes:
        needs_examples: whether it reads `StageSource.examples`.
        needs_amax: whether it reads `StageSource.amax`.
    """

    needs_examples: ClassVar[bool] = True
    needs_amax: ClassVar[bool] = False

    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027  most run anywhere
        """Raise RuntimeError if this machine cannot run the pass; cheap, called before anything is loaded.

        Args:
            name: of the stage.
            device, dtype: where and in which precision the policy runs.
        """

    @property
    def serves_batches(self) -> bool:
        """Whether its engines take several requests at once.

        Where they do not, examples are of one request, and nobody asks for more (`eval.serving`).
        """
        return True

    @abstractmethod
    def __call__(self, source: StageSource) -> CountedStage:
        """Return the stage, optimised."""


def check_passes(passes: Mapping[str, Pass], device: torch.device, dtype: torch.dtype) -> None:
    """Raise CannotRun for all passes that this machine cannot run."""
    reasons: dict[str, Exception] = {}
    for name, chosen in passes.items():
        try:
            chosen.check(name, device, dtype)
        except Exception as error:  # noqa: BLE001  the other stages have reasons of their own; all are raised
            reasons[name] = error
    if reasons:
        each = (f"optim.{name}={passes[name]!r} cannot run here: {error}" for name, error in reasons.items())
        raise CannotRun("; ".join(each), reasons)


def apply_passes(
    sources: Mapping[str, StageSource], passes: Mapping[str, Pass], *, on_mismatch: str = "raise"
) -> dict[str, CountedStage]:
    """Return every stage, optimised by its pass.

    Args:
        sources: of each stage; `Pi05Policy.example_inputs` makes their examples.
        on_mismatch: raise, or fallback: the eager stage serves a call that the engine was not built for, and
            the miss is counted and logged.

    Raises:
        ValueError: a stage without a pass, a pass without a stage, or an unknown `on_mismatch`.
        PassError: a pass raised; or returned something that does not count, that is the eager stage, or that
            was not compared with it (`optim.engines.serve` does, and says so in the details).
    """
    for what, mapping in (("sources", sources), ("passes", passes)):
        if set(mapping) != set(STAGES):
            raise ValueError(f"{what} must name exactly {STAGES}, got {tuple(mapping)}")
    if on_mismatch not in ON_MISMATCH:
        raise ValueError(f"on_mismatch must be one of {', '.join(ON_MISMATCH)}, got {on_mismatch!r}")
    optimised = {}
    for name in STAGES:
        label = f"optim.{name}={passes[name]!r}"
        try:
            result = passes[name](sources[name])
        except Exception as error:
            raise PassError(f"{label} did not engage: {type(error).__name__}: {error}") from error
        if not isinstance(result, CountedStage):
            raise PassError(f"{label} must return a CountedStage, got {type(result).__name__}")
        if passes[name].needs_examples:
            if result.engine is sources[name].stage:
                raise PassError(
                    f"{label} must return another engine than the eager stage, which it was given"
                )
            if "parity" not in result.details:
                raise PassError(
                    f"{label} must compare its engine with the stage; let optim.engines.serve do it"
                )
        if on_mismatch == "fallback":
            result.fallback = sources[name].stage
        optimised[name] = result
    return optimised
