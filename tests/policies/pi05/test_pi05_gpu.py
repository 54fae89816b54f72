"""CUDA against the CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from policies.base import Request
from policies.pi05.checkpoint import Checkpoint, load_checkpoint
from policies.pi05.parity import compare
from policies.pi05.policy import run_stages
from policies.pi05.timing import StageTimer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def _actions(
    checkpoint: Checkpoint, requests: list[Request], form: str, noise: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    inputs = checkpoint.preprocess()([request.observation for request in requests], form)
    timer = StageTimer(checkpoint.device)
    with torch.no_grad():
        actions, _ = run_stages(checkpoint.stages, inputs, lambda: noise.to(checkpoint.device), timer)
    return actions.cpu(), timer.read_ms()


@pytest.mark.parametrize("form", ["lean", "full"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_cuda_equals_cpu(
    small: Checkpoint, request_of: Callable[..., Request], form: str, dtype: torch.dtype, bound: float
) -> None:
    requests = [request_of(0), request_of(1, "open the top drawer and put the bowl inside")]
    noise = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0))
    expected, _ = _actions(small, requests, form, noise)
    actions, stage_ms = _actions(load_checkpoint(small.config, "cuda", dtype), requests, form, noise)
    assert (actions - expected).abs().max() < bound * expected.abs().max()
    assert all(ms > 0 for ms in stage_ms.values())


def test_openpis_outputs_are_met_on_cuda(parity_folder: Path) -> None:
    results = compare(parity_folder, "cuda")
    assert {(r.form, r.output): r.max_rel for r in results if r.max_rel > 5e-5} == {}


def test_captured_stages_replay_to_the_same_actions(
    small: Checkpoint, request_of: Callable[..., Request]
) -> None:
    checkpoint = load_checkpoint(small.config, "cuda", torch.bfloat16)
    inputs = checkpoint.preprocess()([request_of(0).observation], "lean")
    noise = torch.randn(1, 10, 32, device="cuda")
    with torch.no_grad():
        expected, args = run_stages(checkpoint.stages, inputs, lambda: noise, StageTimer(checkpoint.device))
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            checkpoint.stages["denoise"](*args["denoise"])
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = checkpoint.stages["denoise"](*args["denoise"])
        graph.replay()
    torch.testing.assert_close(captured, expected, rtol=1e-3, atol=1e-3)
