"""Captured functions: buffers, replay and aliasing, with a recorder that needs no GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from optim.base import CannotRun, StageContext
from optim.core.parity import stage_parity
from optim.cuda_graph import Captured, CudaGraph
from optim.rewrite.prepared import PreparedDenoise, PreparedPrefix, prepare
from policies.pi05.denoise import Denoise
from policies.pi05.prefix import Prefix


class Passthrough:
    """Does what a CUDA graph does to memory: a replay reads and writes the buffers of the recording."""

    def record(self, function: Callable[[], Any]) -> Any:
        self.function, self.outputs = function, function()
        return self.outputs

    def replay(self) -> None:
        for buffer, value in zip(_tensors(self.outputs), _tensors(self.function()), strict=True):
            buffer.copy_(value)


def _tensors(outputs: Any) -> list[Tensor]:
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    return [tensor for tensor in several if tensor is not None]


def double(x: Tensor, mask: Tensor | None) -> Tensor:
    return 2 * x


def test_replay_follows_new_inputs() -> None:
    captured = Captured(double, (torch.ones(2), None), Passthrough())
    assert captured(torch.full((2,), 5.0), None).tolist() == [10.0, 10.0]
    assert captured(torch.full((2,), -1.0), None).tolist() == [-2.0, -2.0]
    assert captured.captures == 1


def test_the_next_replay_overwrites_what_was_returned() -> None:
    captured = Captured(double, (torch.ones(2), None), Passthrough())
    first = captured(torch.full((2,), 5.0), None)
    captured(torch.full((2,), 7.0), None)
    assert first.tolist() == [14.0, 14.0]


def test_a_caller_may_change_its_inputs_after_the_call() -> None:
    x = torch.ones(2)
    captured = Captured(double, (x, None), Passthrough())
    returned = captured(x, None)
    x.zero_()
    captured._recorder.replay()
    assert returned.tolist() == [2.0, 2.0]


def test_recapture_reads_replaced_weights() -> None:
    weights = {"w": torch.tensor(2.0)}
    recorder = Passthrough()
    captured = Captured(lambda x: weights["w"] * x, (torch.ones(1),), recorder)
    weights["w"] = torch.tensor(3.0)
    captured.recapture()
    assert captured(torch.ones(1)).tolist() == [3.0]
    assert captured.captures == 2


def test_capture_needs_a_gpu_and_says_so() -> None:
    with pytest.raises(CannotRun, match=r"it needs an NVIDIA GPU, got policy.device=cpu; choose optim/den"):
        CudaGraph().check("denoise", torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="warmup must be >= 1, got 0"):
        CudaGraph(warmup=0)


def test_a_captured_stage_follows_new_observations(small_sources: dict[str, StageContext]) -> None:
    for name, source in small_sources.items():
        first, second = source.examples
        if name != "vision":  # the prompts differ in length
            second = tuple(None if arg is None else torch.roll(arg, 1, -1) for arg in first)
        captured = Captured(prepare(source.stage), first, Passthrough())
        with torch.no_grad():
            for args in (first, second):
                assert stage_parity(captured(*args), source.stage(*args)).rel_error < 1e-6


def test_prepared_stages_compute_what_the_stages_do(small_sources: dict[str, StageContext]) -> None:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            calls.append(function.__name__)
            return function(*args)

        return wrapped

    calls: list[str] = []
    for name, kind, counted in (("prefix", PreparedPrefix, 1), ("denoise", PreparedDenoise, 3)):
        source = small_sources[name]
        assert isinstance(source.stage, Prefix | Denoise)
        prepared = prepare(source.stage, wrap)
        assert isinstance(prepared, kind)
        for args in source.examples:
            calls.clear()
            with torch.no_grad():
                assert stage_parity(prepared(*args), source.stage(*args)).rel_error == 0.0
            assert len(calls) == counted


def test_prepared_prefix_keeps_the_mask(small_sources: dict[str, StageContext]) -> None:
    source = small_sources["prefix"]
    tokens, _, prompt, _ = source.examples[0]
    assert prompt is not None
    mask = torch.ones_like(prompt, dtype=torch.bool)
    mask[:, -2:] = False
    args = (tokens, None, prompt, mask)
    with torch.no_grad():
        assert stage_parity(prepare(source.stage, lambda f: f)(*args), source.stage(*args)).rel_error == 0.0
