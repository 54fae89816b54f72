"""policy=auto takes the fastest policy that the machine and the weights allow, and says why no faster one."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from eval.config.compose import check, compose_run
from eval.config.schema import Config, ConfigError
from eval.specs.auto import settle
from eval.specs.pi05_build import choose_backends
from optim.base import CannotRun


def take(*overrides: str) -> tuple[list[str], list[str]]:
    """What policy=auto becomes with these overrides, and the lines about it."""
    GlobalHydra.instance().clear()
    words = ["policy=auto", *overrides]
    return settle(compose_run(words), words, lambda settled: check(compose_run(settled)))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine with a GPU that has FP8, and Triton, and nothing calibrated."""
    monkeypatch.setattr("eval.specs.pi05_build.choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("optim.core.scales.CALIBRATION", tmp_path)
    return monkeypatch


def test_with_fp8_and_the_weights_scales_it_is_the_fastest(gpu: pytest.MonkeyPatch) -> None:
    settled, said = take("seed=8")
    assert settled == ["policy=realtime", "seed=8"]
    assert said == ["policy=auto takes realtime"]


def test_a_gpu_without_fp8_is_told_so_for_each_faster_policy(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    settled, said = take()
    assert settled == ["policy=compiled"]
    why = "FP8 needs compute capability 8.9, Some GPU has 8.0"
    assert said == [
        "policy=auto passes over realtime: policy=realtime (vision on fused_fp8, prefix on fused_fp8): "
        f"{why}",
        f"policy=auto passes over native_fp8: policy=native_fp8 (vision on fp8, prefix on fp8): {why}",
        "policy=auto takes compiled",
    ]


def test_without_scales_no_fp8_and_the_command_that_measures_them(
    gpu: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settled, said = take("checkpoint=random_small")
    assert settled == ["policy=compiled", "checkpoint=random_small"]
    assert len(said) == 3
    for line, policy in zip(said, ("realtime", "native_fp8"), strict=False):
        assert line.startswith(f"policy=auto passes over {policy}: no FP8 scales at {tmp_path}/")
        assert line.endswith("-m optim.calibrate checkpoint=random_small measures them")
    place = Path(said[0].partition(" scales at ")[2].partition(";")[0])
    place.write_text("{}")
    assert take("checkpoint=random_small")[0][0] == "policy=realtime"


def test_scales_that_are_named_are_those_that_are_read(gpu: pytest.MonkeyPatch) -> None:
    assert take("checkpoint=random_small", "optim.scales=mine.json")[0][0] == "policy=realtime"


def test_without_triton_nothing_is_compiled(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr("importlib.util.find_spec", lambda name: None)
    settled, said = take()
    assert settled == ["policy=baseline"]
    assert [("needs Triton" in line) for line in said] == [True, True, True, False]


def test_a_machine_without_a_gpu_takes_the_baseline_with_a_line_for_each_other() -> None:
    settled, said = take("policy.device=cpu")
    assert settled == ["policy=baseline", "policy.device=cpu"]
    assert [line.partition(": ")[0] for line in said] == [
        *(f"policy=auto passes over {policy}" for policy in ("realtime", "native_fp8", "compiled")),
        "policy=auto takes baseline",
    ]
    assert all("it needs an NVIDIA GPU, got policy.device=cpu" in line for line in said[:-1])


def test_a_key_beside_it_that_no_policy_can_serve_is_an_error() -> None:
    with pytest.raises(CannotRun, match=r"policy.images=cuda_graph cannot run here"):
        take("policy.device=cpu", "policy.images=cuda_graph")
    with pytest.raises(ConfigError, match=r"policy.device"):
        take("policy.device=cuda:99")


def test_other_policies_are_left_alone() -> None:
    words: Sequence[str] = ["policy=oracle", "seed=8"]
    GlobalHydra.instance().clear()

    def never(settled: Sequence[str]) -> Config:
        raise AssertionError(settled)

    assert settle(compose_run(words), words, never) == (list(words), [])


def test_a_command_that_needs_one_policy_asks_for_its_name() -> None:
    GlobalHydra.instance().clear()
    with pytest.raises(ConfigError, match="name a policy here, such as policy=native_fp8"):
        choose_backends(check(compose_run(["policy=auto"])))
