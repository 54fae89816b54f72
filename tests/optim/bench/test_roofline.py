"""The roofline counts what the eager stages do, and agrees with what was worked out by hand for an H200."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from optim.bench.roofline import Work, find_ceiling, floor_ms, work
from policies.pi05.denoise import Denoise, euler_timesteps
from policies.pi05.dims import PI05_FULL, PI05_SMALL, STAGES
from policies.pi05.random_weights import random_stages

IMAGES, PROMPT, STEPS = 3, 9, 2


def full_size(steps: int = 10) -> dict[str, Work]:
    return work(PI05_FULL, images=2, prefix_tokens=2 * 256 + 20, steps=steps)


def floors(precision: str) -> list[float]:
    ceiling = find_ceiling("NVIDIA H200")
    assert ceiling is not None
    return [floor_ms(stage, ceiling, precision) for stage in full_size().values()]


@torch.no_grad()
def test_operations_are_those_that_torch_counts() -> None:
    dims = PI05_SMALL
    stages = random_stages(dims, STEPS, 0, torch.device("cpu"), torch.float32)
    denoise = stages["denoise"]
    assert isinstance(denoise, Denoise)
    # these depend on weights and steps alone, so the floor leaves them out
    modulations = denoise.modulations(torch.tensor(euler_timesteps(STEPS), dtype=torch.float64))
    counted = {}
    images = torch.rand(1, IMAGES, 3, dims.image_size, dims.image_size)
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's fused attention
        with FlopCounterMode(display=False) as counter:
            image_tokens = stages["vision"](images)
        counted["vision"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            keys, values, mask = stages["prefix"](image_tokens, None, torch.ones(1, PROMPT).long(), None)
        counted["prefix"] = counter.get_total_flops()
        noise = torch.randn(1, dims.action_horizon, dims.action_dim)
        with FlopCounterMode(display=False) as counter:
            denoise.integrate(noise, modulations, keys, values, mask)
        counted["denoise"] = counter.get_total_flops()
    computed = work(dims, images=IMAGES, prefix_tokens=keys.shape[3], steps=STEPS)
    assert counted == {
        name: stage.layer_flops + stage.other_flops + stage.attention_flops
        for name, stage in computed.items()
    }


def test_weights_are_those_of_the_layers() -> None:
    stages = random_stages(PI05_SMALL, STEPS, 0, torch.device("cpu"), torch.float32)
    computed = work(PI05_SMALL, images=2, prefix_tokens=520, steps=STEPS)
    for name in STAGES:
        linears = {
            path: module.weight.numel()
            for path, module in stages[name].named_modules()
            if isinstance(module, torch.nn.Linear) and path.startswith("layers.") and "layernorm" not in path
        }
        assert computed[name].layer_weights == sum(linears.values())


def test_floors_at_full_size_are_those_worked_out_for_an_h200() -> None:
    # 2 images, 20 prompt tokens, 10 steps: 0.56, 2.57 and 1.47 ms, the first two worked out with 790 TFLOP/s
    # where the table has the 710 that matmuls of these sizes reach.
    vision, prefix, denoise = floors("bfloat16")
    assert [vision * 710 / 790, prefix * 710 / 790] == pytest.approx([0.56, 2.57], rel=0.02)
    assert denoise == pytest.approx(1.47, rel=0.02)
    assert vision + prefix + denoise == pytest.approx(4.6, rel=0.1)
    assert sum(floors("fp8")) == pytest.approx(2.5, rel=0.1)


def test_denoise_reads_its_weights_in_every_step_and_is_bound_by_that() -> None:
    ceiling = find_ceiling("NVIDIA H200")
    assert ceiling is not None
    one, ten = (floor_ms(full_size(steps)["denoise"], ceiling, "bfloat16") for steps in (1, 10))
    assert ten == pytest.approx(10 * one)
    assert one == pytest.approx(623e6 / 4.27e12 * 1e3, rel=0.01)  # 623 MB of expert weights


def test_fp8_halves_what_denoise_reads() -> None:
    assert floors("fp8")[2] == pytest.approx(floors("bfloat16")[2] / 2, rel=0.01)


@pytest.mark.parametrize("gpu", [None, "NVIDIA GeForce RTX 5090"])
def test_a_gpu_that_nobody_measured_has_no_ceiling(gpu: str | None) -> None:
    assert find_ceiling(gpu) is None
