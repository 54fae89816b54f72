"""Passes engage or raise, and stages count."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from optim.base import (
    FALLBACK,
    STAGES,
    Args,
    CountedStage,
    Pass,
    PassError,
    StageMismatch,
    StageSource,
    apply_passes,
    check_passes,
)
from optim.eager import Eager
from optim.engines import serve


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@dataclass(frozen=True)
class Recording(Pass):
    """A pass that remembers what it was given."""

    seen: list[tuple[str, int]]

    needs_examples: ClassVar[bool] = False

    def __call__(self, source: StageSource) -> CountedStage:
        self.seen.append((source.name, len(source.examples)))
        return CountedStage("recording", source.stage, details={"precision": "bf16"})


@dataclass(frozen=True)
class Failing(Pass):
    def check(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        raise RuntimeError(f"install tensorrt for {name}")

    def __call__(self, source: StageSource) -> CountedStage:
        raise ImportError("no module named 'tensorrt'")


@dataclass(frozen=True)
class HandsBack(Pass):
    def __call__(self, source: StageSource) -> Any:
        return source.stage


@dataclass(frozen=True)
class Disguised(Pass):
    """Gives the eager stage another name."""

    def __call__(self, source: StageSource) -> CountedStage:
        return CountedStage("tensorrt", source.stage, details={"precision": "fp8"})


@dataclass(frozen=True)
class Unchecked(Pass):
    """Computes something else, and does not look."""

    def __call__(self, source: StageSource) -> CountedStage:
        return CountedStage("wrong", lambda x: torch.zeros_like(x))


@dataclass(frozen=True)
class OnlyTwo(Pass):
    """A pass whose engine takes inputs of two numbers alone."""

    def __call__(self, source: StageSource) -> CountedStage:
        return serve(source, "only_two", lambda args: source.stage, tolerance=0.0)


def _sources(**examples: Sequence[Args]) -> dict[str, StageSource]:
    return {name: StageSource(name, Double(), examples.get(name, ())) for name in STAGES}


def _passes(**others: Pass) -> dict[str, Pass]:
    return {**dict.fromkeys(STAGES, Eager()), **others}


def _refuse(*args: Tensor | None) -> Tensor:
    raise StageMismatch("input 0 changed from (2,) to (3,); rebuild")


def test_eager_computes_the_stage_and_counts() -> None:
    stages = apply_passes(_sources(), _passes())
    assert stages["vision"](torch.ones(2)).tolist() == [2.0, 2.0]
    assert (stages["vision"].backend, stages["vision"].calls, stages["prefix"].calls) == ("eager", 1, 0)


def test_each_pass_gets_its_stages_examples() -> None:
    recording = Recording([])
    sources = _sources(vision=[(torch.ones(1),)], denoise=[(torch.ones(1),), (None,)])
    stages = apply_passes(sources, dict.fromkeys(STAGES, recording))
    assert recording.seen == [("vision", 1), ("prefix", 0), ("denoise", 2)]
    assert stages["vision"].details == {"precision": "bf16"}


def test_stage_without_a_pass_is_refused() -> None:
    passes = _passes()
    del passes["denoise"]
    with pytest.raises(
        ValueError, match=r"passes must name exactly .*'denoise'\), got \('vision', 'prefix'\)"
    ):
        apply_passes(_sources(), passes)
    with pytest.raises(ValueError, match="sources must name exactly"):
        apply_passes({**_sources(), "tail": StageSource("tail", Double())}, _passes())


def test_pass_that_fails_is_an_error_that_names_stage_pass_and_cause() -> None:
    with pytest.raises(
        PassError, match=r"optim.prefix=Failing\(\) did not engage: ImportError: no module named 'tensorrt'"
    ):
        apply_passes(_sources(), _passes(prefix=Failing()))


def test_pass_that_cannot_run_here_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(
        PassError, match=r"optim.prefix=Failing\(\) cannot run here: install tensorrt for prefix"
    ):
        check_passes(_passes(prefix=Failing()), torch.device("cpu"), torch.float32)
    check_passes(_passes(), torch.device("cpu"), torch.float32)


def test_on_mismatch_decides_between_an_error_and_a_counted_call_of_the_eager_stage() -> None:
    sources = _sources(prefix=[(torch.ones(2),)])
    strict = apply_passes(sources, _passes(prefix=OnlyTwo()))["prefix"]
    lenient = apply_passes(sources, _passes(prefix=OnlyTwo()), on_mismatch="fallback")["prefix"]
    with pytest.raises(StageMismatch, match=r"prefix input 0 is \(3,\) float32 on cpu, .* built for \(2,\)"):
        strict(torch.ones(3))
    assert lenient(torch.ones(3)).tolist() == [2.0] * 3
    assert (strict.calls, strict.misses, lenient.calls, lenient.misses) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="on_mismatch must be one of raise, fallback, got 'ignore'"):
        apply_passes(sources, _passes(), on_mismatch="ignore")


def test_pass_that_hands_the_eager_stage_back_is_refused() -> None:
    with pytest.raises(PassError, match=r"optim.vision=HandsBack\(\) must return a CountedStage, got Double"):
        apply_passes(_sources(), _passes(vision=HandsBack()))


def test_the_eager_stage_under_another_name_and_an_engine_that_nobody_compared_are_refused() -> None:
    with pytest.raises(PassError, match="must return another engine than the eager stage"):
        apply_passes(_sources(), _passes(vision=Disguised()))
    with pytest.raises(PassError, match="must compare its engine with the stage"):
        apply_passes(_sources(), _passes(vision=Unchecked()))


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
