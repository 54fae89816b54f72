"""Calibration sees every linear at every call, on real observations alone, and leaves nothing behind."""

import json
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import Tensor, nn

from eval.app.command import CONF
from eval.config.schema import register, register_schema
from eval.records.observations import save_requests
from optim import calibrate as module
from optim.calibrate import CalibrateConfig, CalibrateRun, calibrate, main, observe_amax, warnings
from optim.core import scales
from optim.core.scales import linears, load_scales
from optim.eager import eager_stages
from policies.base import EpisodeKey, Observation, Request
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.dims import STAGES
from policies.pi05.policy import Pi05Policy
from tests.optim.small import random_checkpoint


class Loop(nn.Module):
    """A stage that calls its linear three times, on inputs that grow or shrink."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            y = self.inner(x)
            x = x * self.factor
        return y


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def small(denoise_steps: int = 3) -> Checkpoint:
    return random_checkpoint(denoise_steps=denoise_steps)


def policy_of(checkpoint: Checkpoint) -> Pi05Policy:
    return Pi05Policy.from_checkpoint(checkpoint, eager_stages(checkpoint.stages), name="test")


def request_of(seed: int) -> Request:
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for name in ("agentview_image", "robot0_eye_in_hand_image")
    }
    observation = Observation(images, rng.normal(size=8), "pick up the black bowl")
    return Request(observation, EpisodeKey("libero_spatial", seed, 0, 7), 0)


def hooks(checkpoint: Checkpoint) -> int:
    return sum(len(m._forward_pre_hooks) for stage in checkpoint.stages.values() for m in stage.modules())


@pytest.mark.parametrize(("factor", "largest"), [(-2.0, 12.0), (0.5, 3.0)])
def test_the_largest_input_is_found_in_the_last_call_as_in_the_first(factor: float, largest: float) -> None:
    stage = Loop(factor)
    x = torch.tensor([[1.0, -3.0]])
    assert observe_amax({"denoise": stage}, lambda: stage(x)) == {"denoise": {"inner": largest}}
    assert observe_amax({"denoise": stage}, lambda: [stage(x), stage(2 * x), stage(x)]) == {
        "denoise": {"inner": 2 * largest}
    }


def test_the_denoise_stage_is_seen_in_each_of_its_steps() -> None:
    checkpoint = small(denoise_steps=4)
    policy = policy_of(checkpoint)
    denoise = checkpoint.stages["denoise"]
    with torch.no_grad():  # a velocity so large that x is largest in the last step
        linears(denoise)["action_out_proj"].bias.fill_(-400.0)
    steps: list[float] = []
    hook = linears(denoise)["action_in_proj"].register_forward_pre_hook(
        lambda _, args: steps.append(args[0].abs().max().item())
    )
    measured = calibrate(checkpoint, policy, [request_of(0)], "test")
    hook.remove()
    assert len(steps) == 4
    assert steps == sorted(steps)
    assert steps[-1] > 2 * steps[0]
    assert measured.amax["denoise"]["action_in_proj"] == steps[-1]


def test_amax_covers_every_linear_and_is_the_maximum_over_the_observations() -> None:
    checkpoint = small()
    policy = policy_of(checkpoint)
    requests = [request_of(seed) for seed in range(3)]
    alone = [calibrate(checkpoint, policy, [request], "test").amax for request in requests]
    together = calibrate(checkpoint, policy, requests, "test")
    for stage in STAGES:
        assert list(together.amax[stage]) == list(linears(checkpoint.stages[stage]))
        for linear, value in together.amax[stage].items():
            assert value == max(amax[stage][linear] for amax in alone)
    assert together.tasks == [f"libero_spatial-task{i}" for i in range(3)]
    assert (together.observations, together.denoise_steps, together.dtype) == (3, 3, "float32")
    assert together.weights_sha256 == checkpoint.weights_sha256


def test_hooks_are_gone_afterwards_and_after_an_error() -> None:
    checkpoint = small()
    policy = policy_of(checkpoint)
    calibrate(checkpoint, policy, [request_of(0)], "test")
    assert hooks(checkpoint) == 0

    def fail() -> None:
        assert hooks(checkpoint) == sum(len(linears(stage)) for stage in checkpoint.stages.values())
        policy.infer([request_of(0)])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        observe_amax(checkpoint.stages, fail)
    assert hooks(checkpoint) == 0


def test_linears_that_saw_nothing_or_zeros_or_nan_are_refused() -> None:
    stage = Loop(1.0)
    with pytest.raises(
        ValueError, match=r"amax\.denoise must have every linear of the stage, got none for inner"
    ):
        observe_amax({"denoise": stage}, lambda: None)
    for number in (0.0, float("nan"), float("inf")):
        x = torch.full((1, 2), number)
        with pytest.raises(
            ValueError, match=rf"amax.denoise\['inner'\] must be finite and positive, got {number}"
        ):
            observe_amax({"denoise": stage}, lambda x=x: stage(x))  # type: ignore[misc]


def test_black_and_missing_images_are_refused() -> None:
    checkpoint = small()
    good = request_of(0)
    for images, why in (
        (
            {**good.observation.images, "robot0_eye_in_hand_image": np.zeros((64, 64, 3), np.uint8)},
            "all zero",
        ),
        ({"agentview_image": good.observation.images["agentview_image"]}, "must have the image"),
    ):
        bad = replace(good, observation=replace(good.observation, images=images))
        with pytest.raises(ValueError, match=f"observation 1 .*'robot0_eye_in_hand_image'.*|{why}"):
            calibrate(checkpoint, policy_of(checkpoint), [good, bad], "test")


def test_inputs_that_float16_cannot_hold_are_warned_of() -> None:
    amax = {
        "vision": {"fc1": 65503.9},
        "prefix": {"down_proj": 65504.0, "up_proj": 1.0},
        "denoise": {"o": 7e4},
    }
    [prefix, denoise] = warnings(amax)
    assert prefix.startswith("1 linears of prefix have inputs >= 65504")
    assert "down_proj" in prefix
    assert "up_proj" not in prefix
    assert "of denoise" in denoise


def composed(*overrides: str) -> CalibrateRun:
    register()
    register_schema("calibrate", CalibrateRun)
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        config = OmegaConf.to_object(compose("calibrate", list(overrides)))
    assert isinstance(config, CalibrateRun)
    return config


def test_the_default_is_thirty_two_observations_over_every_task() -> None:
    config = composed()
    assert (config.checkpoint.name, config.suite.name) == ("reference", "libero_spatial")
    assert (config.protocol.num_tasks, config.suite.tasks) == (None, None)
    assert (config.calibrate.count, config.calibrate.observations, config.calibrate.output) == (
        32,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("calibrate.count=7", "calibrate.count must be 8 to 64, got 7"),
        ("calibrate.count=65", "calibrate.count must be 8 to 64, got 65"),
        ("policy=oracle", "got 'oracle'; choose policy=baseline"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        composed(override)


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["calibrate", "policy.device=cpu", *arguments])
    main()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and an outputs/calibration of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it for the rest of its process
    monkeypatch.setattr(scales, "CALIBRATION", tmp_path / "outputs" / "calibration")
    return tmp_path


def test_the_command_writes_scales_that_load_and_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_requests(place / "ten.npz", [request_of(seed) for seed in range(10)])
    options = ("checkpoint=random_small", "denoise.steps=2", "calibrate.count=8")
    command_line(monkeypatch, *options, "calibrate.observations=ten.npz")
    checkpoint = small(denoise_steps=2)
    path = place / "outputs" / "calibration" / f"{checkpoint.weights_sha256[:16]}.json"
    assert sorted(file for file in place.rglob("*") if file.is_file()) == [path, place / "ten.npz"]
    amax = load_scales(checkpoint, None)
    raw = json.loads(path.read_text())
    assert (raw["observations"], raw["denoise_steps"], raw["source"]) == (8, 2, "file ten.npz")
    printed = capsys.readouterr().out
    assert "random_small on 8 observations of 8 tasks" in printed
    assert str(path) in printed
    for stage in STAGES:
        assert f"{stage} {max(amax[stage].values()):.4g}" in printed


def test_collected_observations_are_kept_where_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def collect(tasks: Any, policy: Any, seed: int, count: int, *, max_steps: int) -> list[Request]:
        asked.update(tasks=[task.task_id for task in tasks], seed=seed, count=count, max_steps=max_steps)
        return [request_of(i) for i in range(count)]

    monkeypatch.setattr(module, "collect_requests", collect)
    monkeypatch.setattr(module, "prepare", dict)
    options = ("checkpoint=random_small", "calibrate.count=8", "calibrate.output=here.json")
    command_line(monkeypatch, *options, "calibrate.keep=kept.npz")
    assert asked == {"tasks": list(range(10)), "seed": 7, "count": 8, "max_steps": 220}
    first = (place / "here.json").read_text()
    GlobalHydra.instance().clear()
    command_line(monkeypatch, *options, "calibrate.observations=kept.npz", "calibrate.overwrite=true")
    assert json.loads((place / "here.json").read_text())["amax"] == json.loads(first)["amax"]
    assert sorted(path.name for path in place.iterdir()) == ["here.json", "kept.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate.observations=none.npz"], "no observations none.npz"),
        (["calibrate.observations=ten.npz"], "must be <= 10, the observations in ten.npz, got 32"),
        (["calibrate.observations=ten.npz", "calibrate.keep=a.npz"], "calibrate.keep must be null with"),
        (["calibrate.observation=ten.npz"], "unknown key calibrate.observation; did you mean"),
        (["calibrate.output=folder"], "calibrate.output must be a file to write, got the folder 'folder'"),
        (["policy=oracle"], "policy.device is no option of this policy; choose one"),
        (["suite.tasks=[0,1]"], "calibration needs observations of at least 3 tasks, got 2; choose"),
        (["checkpoint=random_small", "calibrate.output=ten.npz"], "set calibrate.overwrite=true to replace"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_and_leaves_nothing_behind(
    arguments: list[str],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_requests(place / "ten.npz", [request_of(seed) for seed in range(10)])
    (place / "folder").mkdir()
    with pytest.raises(SystemExit, match="1"):
        command_line(monkeypatch, *arguments)
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert [path.name for path in sorted(place.iterdir())] == ["folder", "ten.npz"]


def test_help_explains_what_calibration_reads_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["calibrate", "--help"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    said = capfd.readouterr().out
    keys = [line.split()[0] for line in said.splitlines() if line.startswith("  ") and "=" in line.split()[0]]
    assert {f"calibrate.{option.name}" for option in fields(CalibrateConfig)} <= {
        key.split("=")[0] for key in keys
    }
    assert not any(word in said for word in ("runner", "tracking", "resume", "video", "shard"))
    with initialize_config_dir(CONF, version_base="1.3"):
        compose("calibrate", keys)  # Hydra refuses a key that is not there
