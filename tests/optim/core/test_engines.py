"""Engines serve the shapes that they were built for; parity is checked before they serve at all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optim.base import Args, StageContext, StageMismatch
from optim.core.engines import serve, signature
from optim.core.parity import ParityError, compare, stage_parity


class Scaled(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return 2 * x


def source(*examples: Args) -> StageContext:
    return StageContext("prefix", Scaled(), examples)


def build(args: Args) -> Callable[..., Any]:
    return lambda x, mask: x + x


def test_the_seeds_bug_is_an_error_that_names_both_lengths() -> None:
    stage = serve(source((torch.ones(1, 970, 8), None)), "engine", build, tolerance=0.0)
    with pytest.raises(
        StageMismatch,
        match=r"prefix input 0 is \(1, 968, 8\) float32 on cpu, the engine was built for \(1, 970, 8\)",
    ):
        stage(torch.ones(1, 968, 8), None)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((torch.ones(2, dtype=torch.float64), None), "input 0 is (2,) float64 on cpu"),
        ((torch.ones(2, device="meta"), None), "input 0 is (2,) float32 on meta"),
        ((torch.ones(2), torch.ones(2)), "input 1 is (2,) float32 on cpu, the engine was built for None"),
        ((torch.ones(2),), "input 1 is absent, the engine was built for None"),
    ],
)
def test_another_dtype_device_or_number_of_inputs_is_an_error_too(args: Args, words: str) -> None:
    stage = serve(source((torch.ones(2), None)), "engine", build, tolerance=0.0)
    with pytest.raises(StageMismatch) as caught:
        stage(*args)
    assert words in str(caught.value)


def test_there_is_one_engine_for_each_signature() -> None:
    built: list[Args] = []

    def counting(args: Args) -> Callable[..., Any]:
        built.append(args)
        return build(args)

    examples = [(torch.ones(n), None) for n in (2, 3, 2, 3)]
    stage = serve(source(*examples), "engine", counting, tolerance=0.0)
    assert [signature(args)[0][0] for args in built if signature(args)[0]] == [(2,), (3,)]
    assert stage(torch.ones(3), None).tolist() == [2.0] * 3
    assert (stage.calls, stage.misses, stage.details["engines"]) == (1, 0, 2)
    with pytest.raises(StageMismatch, match=r"built for \(2,\) float32 on cpu \(and 1 other comb"):
        stage(torch.ones(4), None)


def test_an_engine_that_computes_something_else_is_refused() -> None:
    def wrong(args: Args) -> Callable[..., Any]:
        return lambda x, mask: 2.1 * x

    with pytest.raises(ParityError, match=r"relative error must be <= 0.01, got 0.05 .*over 1 calls"):
        serve(source((torch.ones(4), None)), "engine", wrong, tolerance=0.01)
    assert serve(source((torch.ones(4), None)), "engine", wrong, tolerance=0.06).details["parity"][
        "rel_error"
    ] == pytest.approx(0.05)


def test_an_engine_that_gives_nan_is_refused_whatever_the_tolerance() -> None:
    def nan(args: Args) -> Callable[..., Any]:
        return lambda x, mask: x * float("nan")

    with pytest.raises(ParityError, match="a number is not finite"):
        serve(source((torch.ones(4), None)), "engine", nan, tolerance=1e9)


def test_without_examples_there_is_nothing_to_build_for() -> None:
    with pytest.raises(ValueError, match="prefix has no examples to take shapes from"):
        serve(source(), "engine", build, tolerance=0.0)


def test_parity_is_that_of_the_worst_output() -> None:
    a = torch.tensor([3.0, 4.0])
    parity = stage_parity((a, torch.tensor([3.0, 4.5]), None), (a, a, None))
    assert (parity.rel_error, parity.max_abs) == (pytest.approx(0.1), 0.5)
    assert parity.cosine == pytest.approx((3 * 3 + 4 * 4.5) / (5 * (3**2 + 4.5**2) ** 0.5))
    assert compare(a, a).to_dict() == {"rel_error": 0.0, "cosine": 1.0, "max_abs": 0.0}


@pytest.mark.parametrize("mask", [None, torch.tensor([True, True])])
def test_masks_must_be_equal(mask: Tensor | None) -> None:
    a = torch.ones(2)
    with pytest.raises(ParityError, match="output 1 is a mask that differs"):
        stage_parity((a, torch.tensor([True, False])), (a, mask))


def test_another_shape_is_no_parity() -> None:
    with pytest.raises(ParityError, match=r"shape must be \(2,\), got \(3,\)"):
        compare(torch.ones(3), torch.ones(2))
