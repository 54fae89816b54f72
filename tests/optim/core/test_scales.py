"""Scales are found where they belong, and refused when they are not of these weights."""

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optim.core import scales as module
from optim.core.scales import (
    FILE_NAME,
    Scales,
    calibrate_command,
    default_path,
    inputs_of,
    linears,
    load_scales,
    write_scales,
)
from policies.pi05.checkpoint import Checkpoint
from policies.text import shell_command
from tests.optim.small import SHIPPED, random_checkpoint, reference_checkpoint

COMMAND = shell_command("optim.calibrate", "checkpoint=random_small")
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return random_checkpoint(denoise_steps=2)


@pytest.fixture(scope="module")
def reference() -> Checkpoint:
    return reference_checkpoint()


@pytest.fixture(autouse=True)
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty outputs/calibration."""
    monkeypatch.setattr(module, "CALIBRATION", tmp_path / "calibration")
    return tmp_path / "calibration"


def scales_of(checkpoint: Checkpoint) -> Scales:
    return Scales(
        weights_sha256=checkpoint.weights_sha256,
        checkpoint=checkpoint.config.name,
        observations=8,
        source="test",
        tasks=["libero_spatial-task0"],
        form="lean",
        denoise_steps=2,
        dtype="float32",
        date="2026-11-23",
        inputs=inputs_of(checkpoint),
        amax={
            name: {linear: 1.0 + i for i, linear in enumerate(linears(stage))}
            for name, stage in checkpoint.stages.items()
        },
    )


def elsewhere(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The same checkpoint as if it had been loaded from `folder`."""
    folder.mkdir(exist_ok=True)
    config = replace(checkpoint.config, layout="native", path=str(folder), sizes=None)
    return replace(checkpoint, config=config)


def test_written_scales_load_equal(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "new" / "scales.json"
    write_scales(path, scales_of(small))
    assert load_scales(small, str(path)) == scales_of(small).amax


def test_scales_are_sought_beside_the_weights_and_then_in_outputs(
    small: Checkpoint, calibration: Path, tmp_path: Path
) -> None:
    by_hash = calibration / f"{small.weights_sha256[:16]}.json"
    with_folder = elsewhere(small, tmp_path / "weights")
    assert default_path(small) == by_hash
    assert default_path(with_folder) == tmp_path / "weights" / FILE_NAME

    write_scales(by_hash, scales_of(small))
    assert load_scales(small, None) == load_scales(with_folder, None) == scales_of(small).amax

    other = scales_of(small)
    other.amax["vision"]["projector"] = 99.0
    write_scales(default_path(with_folder), other)
    assert load_scales(with_folder, None)["vision"]["projector"] == 99.0


def test_missing_scales_are_refused_with_the_places_and_the_command(
    small: Checkpoint, calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        load_scales(elsewhere(small, tmp_path / "weights"), None)
    text = str(refused.value)
    assert str(tmp_path / "weights" / FILE_NAME) in text
    assert str(calibration) in text
    assert f"{COMMAND} checkpoint.path={tmp_path / 'weights'}" in text
    with pytest.raises(
        FileNotFoundError, match=f"optim.scales: no file 'a.json'.*{COMMAND} calibrate.output=a.json"
    ):
        load_scales(small, "a.json")


def test_the_command_names_what_differs_between_checkpoints(small: Checkpoint) -> None:
    assert calibrate_command(small) == COMMAND
    seeded = replace(small, config=replace(small.config, seed=3, tokenizer="my file.model"))
    tokenizer = shlex.quote("checkpoint.tokenizer='my file.model'")
    assert calibrate_command(seeded) == f"{COMMAND} {tokenizer} checkpoint.seed=3"


def test_scales_of_other_weights_are_refused_with_the_command(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    write_scales(path, replace(scales_of(small), weights_sha256="0" * 64))
    with pytest.raises(ValueError, match=f"must be {small.weights_sha256}, got {'0' * 64}.*{COMMAND}"):
        load_scales(small, str(path))


def test_the_command_repeats_the_keys_that_the_command_line_changed(small: Checkpoint) -> None:
    config = replace(small.config, norm_mode="mean_std", state_in_prompt=True, state_prompt_dims=8)
    assumed = dict.fromkeys(("sizes", "horizon"), "assumed by checkpoint=random_small")
    command = calibrate_command(replace(small, config=config, origins=assumed))
    changed = [
        "checkpoint.norm_mode=mean_std",
        "checkpoint.state_in_prompt=true",
        "checkpoint.state_prompt_dims=8",
    ]
    assert shlex.split(command) == [*COMMAND.split(), *changed]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: replace(c, dims=replace(c.dims, masked_cameras=c.dims.cameras[1:])),
            r'cameras must be \["base_0_rgb"\], got \["base_0_rgb", "left_wrist_0_rgb"\]',
        ),
        (
            lambda c: replace(c, dims=replace(c.dims, cameras=tuple(reversed(c.dims.cameras)))),
            r'cameras must be \["left_wrist_0_rgb", "base_0_rgb"\], got',
        ),
        (
            lambda c: replace(c, dims=replace(c.dims, action_horizon=50)),
            "horizon must be 50, got 10",
        ),
        (
            lambda c: replace(c, settings=replace(c.settings, periods=(0.004, 2.0))),
            r"periods must be \[0.004, 2.0\], got \[0.004, 4.0\]",
        ),
        (
            lambda c: replace(c, settings=replace(c.settings, state_norm="quantile", state_prompt_dims=8)),
            "state_prompt_dims must be 8, got 0, state_norm must be quantile, got null, state_norm_stats",
        ),
    ],
)
def test_scales_of_other_inputs_are_refused_by_what_differs(
    change: Callable[[Checkpoint], Checkpoint], message: str, small: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "scales.json"
    write_scales(path, scales_of(small))
    pattern = rf"inputs in .*scales\.json: {message}.*measured with other inputs; .*{COMMAND}"
    with pytest.raises(ValueError, match=pattern):
        load_scales(change(small), str(path))


def test_scales_that_do_not_say_their_inputs_are_refused(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    for inputs, said in (
        (None, "cameras must be"),
        ([], "cameras must be"),
        ({"x": 1}, "x must be null, got 1"),
    ):
        write_scales(path, scales_of(small))
        raw = {**json.loads(path.read_text()), "inputs": inputs}
        path.write_text(json.dumps(raw))
        with pytest.raises(ValueError, match=rf"inputs in .*{said}.*{COMMAND}"):
            load_scales(small, str(path))


def _set(stage: str, linear: str, value: Any) -> Edit:
    return lambda raw: raw["amax"][stage].update({linear: value})


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda raw: raw["amax"]["vision"].pop("projector"), "amax.vision must have every .* projector"),
        (_set("prefix", "layers.9.mlp", 1.0), "amax.prefix .* of the stage alone, got layers.9.mlp"),
        (_set("vision", "projector", 0.0), r"amax.vision\['projector'\] must be finite .*, got 0.0"),
        (_set("vision", "projector", -1.0), "got -1.0"),
        (_set("vision", "projector", math.inf), "got inf"),
        (_set("vision", "projector", math.nan), "got nan"),
        (_set("vision", "projector", "1"), "got '1'"),
        (_set("vision", "projector", True), "got True"),
        (_set("vision", "projector", 10**400), "must be finite .*, got 1000"),
        (_set("vision", "projector", 1e39), r"must be finite and positive, got 1e\+39"),
        (_set("vision", "projector", 1e-300), r"must be 1e-09 to 1e\+09, .* got 1e-300"),
        (_set("vision", "projector", 1e30), r"must be 1e-09 to 1e\+09, .* got 1e\+30"),
        (lambda raw: raw["amax"].pop("denoise"), "must have vision, prefix, denoise"),
        (lambda raw: raw.pop("amax"), "must have vision, prefix, denoise, each with its linears, got None"),
        (lambda raw: raw.pop("weights_sha256"), "weights_sha256 .* got None"),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit_are_refused_by_key_and_value(
    edit: Edit, why: str, small: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "scales.json"
    write_scales(path, scales_of(small))
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=f"{why}.*{COMMAND}"):
        load_scales(small, str(path))


@pytest.mark.parametrize(("content", "why"), [("{", "is not JSON"), ("[1]", "must be a JSON object")])
def test_a_file_with_something_else_is_refused(
    content: str, why: str, small: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "scales.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"scales.json {why}.*{COMMAND}"):
        load_scales(small, str(path))


def test_the_scales_that_ship_are_of_the_weights_that_ship_and_cover_every_linear(
    reference: Checkpoint,
) -> None:
    amax = load_scales(reference, None)
    assert {name: list(values) for name, values in amax.items()} == {
        name: list(linears(stage)) for name, stage in reference.stages.items()
    }
    raw = json.loads((SHIPPED / FILE_NAME).read_text())
    assert raw["observations"] >= 32
    suites = ("libero_goal", "libero_object", "libero_spatial")
    assert raw["tasks"] == [f"{suite}-task{i}" for suite in suites for i in range(10)]
    assert str(Path.home()) not in json.dumps(raw["source"])
