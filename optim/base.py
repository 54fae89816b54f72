"""Passes: what makes a stage faster, or raises; and the counters that prove it ran.

A pass is a frozen dataclass of options. Called with a stage and, where the caller has them, arguments of
calls to that stage, it returns a `CountedStage` or raises. `apply_passes` refuses one that hands the bare
stage back.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from policies.pi05.stages import STAGES

Args = tuple[Tensor | None, ...]
"""Arguments of one call of a stage, in the order of its `forward`."""

log = logging.getLogger(__name__)


class StageMismatch(RuntimeError):
    """Inputs are not what the engine was built for: say which one, from what to what."""


class PassError(RuntimeError):
    """A pass could not engage; names the stage and the pass."""


class CountedStage:
    """A stage as the policy calls it: an engine and its call counters.

    Attributes:
        backend: what serves the calls (`eager`, `cuda_graph`, ...).
        details: facts for the record: precision, engine size, flavour.
        calls: calls that the engine served.
        misses: calls that it refused and the fallback served.

    Non-obvious behaviors:
        Without a `fallback`, a `StageMismatch` is the caller's error. With one, the fallback serves that
        call, which is counted in `misses` and logged as a warning. Other errors of the engine are always
        raised.
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
        self.calls = 0
        self.misses = 0
        self._engine = engine
        self._fallback = fallback

    def __call__(self, *args: Tensor | None) -> Any:
        """Return what the engine returns.

        Raises:
            StageMismatch: the engine was built for other inputs and there is no fallback.
        """
        try:
            result = self._engine(*args)
        except StageMismatch as mismatch:
            if self._fallback is None:
                raise
            self.misses += 1
            log.warning("%s missed a call (%d so far): %s", self.backend, self.misses, mismatch)
            return self._fallback(*args)
        self.calls += 1
        return result


class Pass(Protocol):
    """One technique for one stage."""

    def __call__(self, name: str, stage: nn.Module, examples: Sequence[Args]) -> CountedStage:
        """Return the stage, optimised.

        Args:
            name: vision, prefix or denoise.
            stage: the eager module.
            examples: arguments of calls to this stage, as `apply_passes` was given them; may be empty.
        """
        ...


def apply_passes(
    stages: Mapping[str, nn.Module], passes: Mapping[str, Pass], examples: Mapping[str, Sequence[Args]]
) -> dict[str, CountedStage]:
    """Return every stage, optimised by its pass.

    Args:
        examples: per stage, the arguments of each of some calls (`Pi05Policy.example_inputs` makes them);
            they reach the stage's pass unchanged. A stage that is absent gets none, which is for its pass to
            judge.

    Raises:
        ValueError: a stage without a pass, or a pass without a stage.
        PassError: a pass raised, or returned the eager stage or something that does not count.
    """
    for what, mapping in (("stages", stages), ("passes", passes)):
        if set(mapping) != set(STAGES):
            raise ValueError(f"{what} must name exactly {STAGES}, got {tuple(mapping)}")
    optimised = {}
    for name in STAGES:
        label = f"optim.{name}={passes[name]!r}"
        try:
            result = passes[name](name, stages[name], examples.get(name, ()))
        except Exception as error:
            raise PassError(f"{label} did not engage: {type(error).__name__}: {error}") from error
        if not isinstance(result, CountedStage):
            raise PassError(f"{label} must return a CountedStage, got {type(result).__name__}")
        optimised[name] = result
    return optimised
