"""Backends engage or raise, and stages count."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from optim.base import (
    FALLBACK,
    Args,
    Backend,
    BackendError,
    CannotRun,
    CountedStage,
    Reason,
    StageContext,
    StageMismatch,
    apply_backends,
    check_backends,
)
from optim.core.engines import serve
from optim.eager import Eager
from policies.pi05.dims import STAGES


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@dataclass(frozen=True)
class Recording(Backend):
    """A backend that remembers what it was given."""

    seen: list[tuple[str, int]]

    needs_examples: ClassVar[bool] = False

    def __call__(self, source: StageContext) -> CountedStage:
        self.seen.append((source.name, len(source.examples)))
        return CountedStage("recording", source.stage, details={"precision": "bf16"})


@dataclass(frozen=True)
class Failing(Backend):
    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        raise RuntimeError(f"install tensorrt for {name}")

    def __call__(self, source: StageContext) -> CountedStage:
        raise ImportError("no module named 'tensorrt'")


@dataclass(frozen=True)
class HandsBack(Backend):
    def __call__(self, source: StageContext) -> Any:
        return source.stage


@dataclass(frozen=True)
class Disguised(Backend):
    """Gives the eager stage another name."""

    def __call__(self, source: StageContext) -> CountedStage:
        return CountedStage("tensorrt", source.stage, details={"precision": "fp8"})


@dataclass(frozen=True)
class Unchecked(Backend):
    """Computes something else, and does not look."""

    def __call__(self, source: StageContext) -> CountedStage:
        return CountedStage("wrong", lambda x: torch.zeros_like(x))


@dataclass(frozen=True)
class OnlyTwo(Backend):
    """A backend whose engine takes inputs of two numbers alone."""

    def __call__(self, source: StageContext) -> CountedStage:
        return serve(source, "only_two", lambda args: source.stage, tolerance=0.0)


def _sources(**examples: Sequence[Args]) -> dict[str, StageContext]:
    return {name: StageContext(name, Double(), examples.get(name, ())) for name in STAGES}


def _backends(**others: Backend) -> dict[str, Backend]:
    return {**dict.fromkeys(STAGES, Eager()), **others}


def _refuse(*args: Tensor | None) -> Tensor:
    raise StageMismatch("input 0 changed from (2,) to (3,); rebuild")


def test_eager_computes_the_stage_and_counts() -> None:
    stages = apply_backends(_sources(), _backends())
    assert stages["vision"](torch.ones(2)).tolist() == [2.0, 2.0]
    assert (stages["vision"].backend, stages["vision"].calls, stages["prefix"].calls) == ("eager", 1, 0)


def test_each_backend_gets_its_stages_examples() -> None:
    recording = Recording([])
    sources = _sources(vision=[(torch.ones(1),)], denoise=[(torch.ones(1),), (None,)])
    stages = apply_backends(sources, dict.fromkeys(STAGES, recording))
    assert recording.seen == [("vision", 1), ("prefix", 0), ("denoise", 2)]
    assert stages["vision"].details == {"precision": "bf16"}


def test_stage_without_a_backend_is_refused() -> None:
    backends = _backends()
    del backends["denoise"]
    with pytest.raises(
        ValueError, match=r"backends must name exactly .*'denoise'\), got \('vision', 'prefix'\)"
    ):
        apply_backends(_sources(), backends)
    with pytest.raises(ValueError, match="sources must name exactly"):
        apply_backends({**_sources(), "tail": StageContext("tail", Double())}, _backends())


def test_backend_that_fails_is_an_error_that_names_stage_backend_and_cause() -> None:
    with pytest.raises(
        BackendError,
        match=r"optim.prefix=Failing\(\) did not engage: ImportError: no module named 'tensorrt'",
    ):
        apply_backends(_sources(), _backends(prefix=Failing()))


def test_backend_that_cannot_run_here_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(
        CannotRun, match=r"optim.prefix=Failing\(\) cannot run here: install tensorrt for prefix"
    ) as raised:
        check_backends(_backends(prefix=Failing()), torch.device("cpu"), torch.float32)
    assert raised.value.reasons == {"prefix": Reason("install tensorrt for prefix")}
    check_backends(_backends(), torch.device("cpu"), torch.float32)


def test_on_mismatch_decides_between_an_error_and_a_counted_call_of_the_eager_stage() -> None:
    sources = _sources(prefix=[(torch.ones(2),)])
    strict = apply_backends(sources, _backends(prefix=OnlyTwo()))["prefix"]
    lenient = apply_backends(sources, _backends(prefix=OnlyTwo()), on_mismatch="fallback")["prefix"]
    with pytest.raises(StageMismatch, match=r"prefix input 0 is \(3,\) float32 on cpu, .* built for \(2,\)"):
        strict(torch.ones(3))
    assert lenient(torch.ones(3)).tolist() == [2.0] * 3
    assert (strict.calls, strict.misses, lenient.calls, lenient.misses) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="on_mismatch must be one of raise, fallback, got 'ignore'"):
        apply_backends(sources, _backends(), on_mismatch="ignore")


def test_backend_that_hands_the_eager_stage_back_is_refused() -> None:
    with pytest.raises(
        BackendError, match=r"optim.vision=HandsBack\(\) must return a CountedStage, got Double"
    ):
        apply_backends(_sources(), _backends(vision=HandsBack()))


def test_the_eager_stage_under_another_name_and_an_engine_that_nobody_compared_are_refused() -> None:
    with pytest.raises(BackendError, match="must return another engine than the eager stage"):
        apply_backends(_sources(), _backends(vision=Disguised()))
    with pytest.raises(BackendError, match="must compare its engine with the stage"):
        apply_backends(_sources(), _backends(vision=Unchecked()))


def test_mismatch_without_fallback_is_the_callers_error_and_counted() -> None:
    stage = CountedStage("engine", _refuse)
    with pytest.raises(StageMismatch, match=r"input 0 changed .*optim.on_mismatch=fallback would have eager"):
        stage(torch.ones(3))
    assert (stage.calls, stage.misses, stage.refused) == (0, 0, 1)


def test_mismatch_with_fallback_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    stage = CountedStage("engine", _refuse, fallback=Double())
    with caplog.at_level(logging.WARNING):
        assert stage(torch.ones(3)).tolist() == [2.0] * 3
    assert (stage.calls, stage.misses, stage.refused, stage.served_by) == (0, 1, 0, FALLBACK)
    assert "engine missed a call (1 so far): input 0 changed" in caplog.text


def test_other_errors_of_an_engine_are_never_hidden_by_the_fallback() -> None:
    def broken(*args: Tensor | None) -> Tensor:
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        CountedStage("engine", broken, fallback=Double())(torch.ones(1))
