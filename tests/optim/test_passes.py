"""Passes engage or raise, and stages count."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optim.base import STAGES, Args, CountedStage, Pass, PassError, StageMismatch, apply_passes
from optim.eager import Eager


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@dataclass(frozen=True)
class Recording:
    """A pass that remembers what it was given."""

    seen: list[tuple[str, int]]

    def __call__(self, name: str, stage: nn.Module, examples: Sequence[Args]) -> CountedStage:
        self.seen.append((name, len(examples)))
        return CountedStage("recording", stage, details={"precision": "bf16"})


@dataclass(frozen=True)
class Failing:
    def __call__(self, name: str, stage: nn.Module, examples: Sequence[Args]) -> CountedStage:
        raise ImportError("no module named 'tensorrt'")


@dataclass(frozen=True)
class HandsBack:
    def __call__(self, name: str, stage: nn.Module, examples: Sequence[Args]) -> Any:
        return stage


def _stages() -> dict[str, nn.Module]:
    return {name: Double() for name in STAGES}


def _passes(**others: Pass) -> dict[str, Pass]:
    return {**dict.fromkeys(STAGES, Eager()), **others}


def _refuse(*args: Tensor | None) -> Tensor:
    raise StageMismatch("input 0 changed from (2,) to (3,); rebuild")


def test_eager_computes_the_stage_and_counts() -> None:
    stages = apply_passes(_stages(), _passes(), {})
    assert stages["vision"](torch.ones(2)).tolist() == [2.0, 2.0]
    assert (stages["vision"].backend, stages["vision"].calls, stages["prefix"].calls) == ("eager", 1, 0)


def test_each_pass_gets_its_stages_examples() -> None:
    recording = Recording([])
    examples: dict[str, list[Args]] = {"vision": [(torch.ones(1),)], "denoise": [(torch.ones(1),), (None,)]}
    stages = apply_passes(_stages(), dict.fromkeys(STAGES, recording), examples)
    assert recording.seen == [("vision", 1), ("prefix", 0), ("denoise", 2)]
    assert stages["vision"].details == {"precision": "bf16"}


def test_stage_without_a_pass_is_refused() -> None:
    passes = _passes()
    del passes["denoise"]
    with pytest.raises(
        ValueError, match=r"passes must name exactly .*'denoise'\), got \('vision', 'prefix'\)"
    ):
        apply_passes(_stages(), passes, {})
    with pytest.raises(ValueError, match="stages must name exactly"):
        apply_passes({**_stages(), "tail": Double()}, _passes(), {})


def test_pass_that_fails_is_an_error_that_names_stage_pass_and_cause() -> None:
    with pytest.raises(
        PassError, match=r"optim.prefix=Failing\(\) did not engage: ImportError: no module named 'tensorrt'"
    ):
        apply_passes(_stages(), _passes(prefix=Failing()), {})


def test_pass_that_hands_the_eager_stage_back_is_refused() -> None:
    with pytest.raises(PassError, match=r"optim.vision=HandsBack\(\) must return a CountedStage, got Double"):
        apply_passes(_stages(), _passes(vision=HandsBack()), {})


def test_mismatch_without_fallback_is_the_callers_error() -> None:
    stage = CountedStage("engine", _refuse)
    with pytest.raises(StageMismatch, match="input 0 changed"):
        stage(torch.ones(3))
    assert (stage.calls, stage.misses) == (0, 0)


def test_mismatch_with_fallback_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    stage = CountedStage("engine", _refuse, fallback=Double())
    with caplog.at_level(logging.WARNING):
        assert stage(torch.ones(3)).tolist() == [2.0] * 3
    assert (stage.calls, stage.misses) == (0, 1)
    assert "engine missed a call (1 so far): input 0 changed" in caplog.text


def test_other_errors_of_an_engine_are_never_hidden_by_the_fallback() -> None:
    def broken(*args: Tensor | None) -> Tensor:
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        CountedStage("engine", broken, fallback=Double())(torch.ones(1))
