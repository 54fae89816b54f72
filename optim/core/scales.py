"""FP8 scales in a file: the largest input of every linear, and the weights that it was measured with."""

import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from policies.files import OUTPUTS, write_atomic
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.dims import STAGES
from policies.text import shorten

FP16_MAX = 65504.0
FILE_NAME = "fp8_scales.json"  # beside the weights
CALIBRATION = OUTPUTS / "calibration"  # for weights without a folder

Amax = dict[str, dict[str, float]]
"""Of each stage, each linear's largest absolute input."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What `optim.calibrate` measured, and what it depends on.

    Attributes:
        weights_sha256: `Checkpoint.weights_sha256`.
        checkpoint: its name.
        observations: how many.
        source: where they came from.
        tasks: `suite-taskN` of each.
        form: of the policy: lean or full.
        denoise_steps: Euler steps that the denoise stage was measured over.
        dtype: of the eager stages.
        date: ISO.
        amax: see `Amax`.
    """

    weights_sha256: str
    checkpoint: str
    observations: int
    source: str
    tasks: list[str]
    form: str
    denoise_steps: int
    dtype: str
    date: str
    amax: Amax


def write_scales(path: Path, scales: Scales) -> None:
    """Write `scales` as JSON, whole or not at all, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(scales), indent=1, allow_nan=False) + "\n", durable=True)


def load_scales(checkpoint: Checkpoint, path: str | None) -> Amax:
    """Read the largest input of every linear of every stage.

    Args:
        path: `optim.scales`, a file; None looks in the checkpoint's folder, then in outputs/calibration/.

    Raises:
        FileNotFoundError: there are no scales.
        ValueError: they belong to other weights, or are not one finite positive number for each linear.
    """
    file = find_scales(checkpoint, path)
    scales = _read(file, checkpoint)
    got = scales.get("weights_sha256")
    if got != checkpoint.weights_sha256:
        raise ValueError(
            f"weights_sha256 in {file} must be {checkpoint.weights_sha256}, got {got}: "
            f"the scales were measured with other weights; {_way_out(checkpoint)}"
        )
    amax = scales.get("amax")
    if not isinstance(amax, dict) or not all(isinstance(amax.get(stage), dict) for stage in STAGES):
        raise ValueError(
            f"amax in {file} must have {', '.join(STAGES)}, each with its linears, got {amax!r:.80}; "
            f"{_way_out(checkpoint)}"
        )
    try:
        return {stage: check_amax(stage, checkpoint.stages[stage], amax[stage]) for stage in STAGES}
    except ValueError as error:
        raise ValueError(f"{error}, in {file}; {_way_out(checkpoint)}") from error


def check_amax(name: str, stage: nn.Module, amax: Mapping[str, Any]) -> dict[str, float]:
    """Convert a stage's `amax` to floats; ValueError unless each linear has a finite, positive one."""
    wanted = linears(stage)
    if missing := [linear for linear in wanted if linear not in amax]:
        raise ValueError(
            f"amax.{name} must have every linear of the stage, got none for {shorten(missing)} "
            f"({len(missing)} of {len(wanted)})"
        )
    if unknown := [linear for linear in amax if linear not in wanted]:
        raise ValueError(
            f"amax.{name} must have linears of the stage alone, got {shorten(unknown)} "
            f"({len(unknown)} unknown)"
        )
    for linear, value in amax.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and value > 0):
            raise ValueError(f"amax.{name}[{linear!r}] must be finite and positive, got {value!r}")
    return {linear: float(amax[linear]) for linear in wanted}


def linears(stage: nn.Module) -> dict[str, nn.Linear]:
    """Collect the linears of a stage by their names in it."""
    return {name: module for name, module in stage.named_modules() if isinstance(module, nn.Linear)}


def find_scales(checkpoint: Checkpoint, path: str | None) -> Path:
    """Find the file that `load_scales` reads; FileNotFoundError where there is none."""
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"optim.scales: no file {path!r} (looked at {file.resolve()}); "
                f"{calibrate_command(checkpoint)} calibrate.output={shlex.quote(path)} makes it"
            )
        return file
    places = _places(checkpoint)
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no scales of checkpoint {checkpoint.config.name} for fp8: looked at "
        f"{' and '.join(map(str, places))}; {calibrate_command(checkpoint)} measures them"
    )


def default_path(checkpoint: Checkpoint) -> Path:
    """Choose where calibration writes: the first of the places of `find_scales` that may be written to."""
    *beside, outputs = _places(checkpoint)
    return next((place for place in beside if os.access(place.parent, os.W_OK)), outputs)


def calibrate_command(checkpoint: Checkpoint) -> str:
    """Spell the command that measures the scales of a checkpoint."""
    config = checkpoint.config
    words = ["python", "-m", "optim.calibrate", f"checkpoint={config.name}"]
    for key in ("path", "revision", "tokenizer", "norm_stats", "seed"):
        if value := getattr(config, key):
            words.append(f"checkpoint.{key}={value}")
    return shlex.join(words)


def _places(checkpoint: Checkpoint) -> list[Path]:
    config = checkpoint.config
    folder = None if config.path is None else Path(config.path).expanduser()
    beside = [folder / FILE_NAME] if folder is not None and folder.is_dir() else []
    return [*beside, CALIBRATION / f"{checkpoint.weights_sha256[:16]}.json"]


def _read(file: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        scales = json.loads(file.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{file} is not JSON: {error}; {_way_out(checkpoint)}") from error
    if not isinstance(scales, dict):
        raise ValueError(f"{file} must be a JSON object, got {scales!r:.80}; {_way_out(checkpoint)}")
    return scales


def _way_out(checkpoint: Checkpoint) -> str:
    return f"measure them again with {calibrate_command(checkpoint)}"
