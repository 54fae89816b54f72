"""FP8 scales in a file: the largest input of every linear, and the weights and inputs it was measured with.

Non-obvious behaviors:
    Scales serve any number of Euler steps, form and precision: the times lie between the same ends, and what
    the full form adds is masked.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from policies.files import OUTPUTS, expand_home, read_json_object, real_path, write_atomic
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import STAGES
from policies.text import brief, shell_command, shell_override, shorten

FP16_MAX = 65504.0
FLOAT32_MAX = 3.4028234663852886e38
LEAST_AMAX, MOST_AMAX = 1e-9, 1e9  # the reference checkpoint has 1 to 136
FILE_NAME = "fp8_scales.json"  # beside the weights
CALIBRATION = OUTPUTS / "calibration"  # for weights without a folder

# Keys of a checkpoint that decide its inputs, beside those with a text or a number of their own in a command.
_FREE = ("sizes", "norm_mode", "state_in_prompt", "state_prompt_dims", "horizon")

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
        inputs: what the stages see of an observation, see `inputs_of`.
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
    inputs: dict[str, Any]
    amax: Amax


def inputs_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Collect, in plain JSON values, what decides the stages' inputs beside weights and observation."""
    settings = checkpoint.settings
    saved = settings.lerobot
    eps = checkpoint.norm_stats.eps if saved is None else saved.preprocessor.normalisation.eps
    return {
        "cameras": list(checkpoint.dims.live_cameras),
        "resize": "openpi" if saved is None else "lerobot",
        "tokenizer_sha256": checkpoint.tokenizer.sha256,
        "state_prompt_dims": settings.state_prompt_dims,
        "state_norm": settings.state_norm,
        "state_norm_stats_sha256": checkpoint.norm_stats.sha256 if settings.state_norm else None,
        "state_eps": eps if settings.state_norm else None,
        "horizon": checkpoint.dims.action_horizon,
        "periods": list(settings.periods),
    }


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
        ValueError: they belong to other weights or inputs, or are not one positive number for each linear.
    """
    file = find_scales(checkpoint, path)
    scales = _read(file, checkpoint)
    got = scales.get("weights_sha256")
    if got != checkpoint.weights_sha256:
        raise ValueError(
            f"weights_sha256 in {file} must be {checkpoint.weights_sha256}, got {got}: "
            f"the scales were measured with other weights; {_way_out(checkpoint)}"
        )
    inputs, wanted = scales.get("inputs"), inputs_of(checkpoint)
    if inputs != wanted:
        given = inputs if isinstance(inputs, dict) else {}
        differ = [key for key in wanted if key not in given or given[key] != wanted[key]]
        differ += sorted(given.keys() - wanted.keys())
        changes = shorten(
            f"{key} must be {brief(wanted.get(key))}, got {brief(given.get(key))}" for key in differ
        )
        raise ValueError(
            f"inputs in {file}: {changes or f'must be an object, got {brief(inputs)}'}; "
            f"the scales were measured with other inputs; {_way_out(checkpoint)}"
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
    """Convert a stage's `amax` to floats; ValueError unless each linear has one in range."""
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
        if type(value) not in (int, float) or not 0 < value <= FLOAT32_MAX:
            raise ValueError(f"amax.{name}[{linear!r}] must be finite and positive, got {value!r:.80}")
        if not LEAST_AMAX <= value <= MOST_AMAX:
            raise ValueError(
                f"amax.{name}[{linear!r}] must be {LEAST_AMAX:g} to {MOST_AMAX:g}, as in a network that "
                f"works, got {value!r:.80}"
            )
    return {linear: float(amax[linear]) for linear in wanted}


def linears(stage: nn.Module) -> dict[str, nn.Linear]:
    """Collect the linears of a stage by their names in it."""
    return {name: module for name, module in stage.named_modules() if isinstance(module, nn.Linear)}


def find_scales(checkpoint: Checkpoint, path: str | None) -> Path:
    """Find the file that `load_scales` reads; FileNotFoundError where there is none."""
    if path is not None:
        file = expand_home(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"optim.scales: no file {path!r} (looked at {real_path(file)}); "
                f"{calibrate_command(checkpoint)} {shell_override('calibrate.output', path)} makes it"
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
    words = [shell_override("checkpoint", config.name)]
    for key in ("path", "revision", "tokenizer", "norm_stats"):
        if value := getattr(config, key):
            words.append(shell_override(f"checkpoint.{key}", value))
    if config.seed:
        words.append(f"checkpoint.seed={config.seed}")
    if checkpoint.origins is not None:  # of keys that the command line changed
        changed = [key for key in _FREE if key not in checkpoint.origins]
        words += [f"checkpoint.{key}={brief(getattr(config, key))}" for key in changed]
    return shell_command("optim.calibrate", *words)


def scale_places(config: CheckpointConfig, weights_sha256: Callable[[], str]) -> Iterator[Path]:
    """Yield where scales may lie: beside the weights, then in outputs/calibration.

    Args:
        weights_sha256: called for the second place alone.
    """
    folder = None if config.path is None else expand_home(config.path)
    if folder is not None and folder.is_dir():
        yield folder / FILE_NAME
    yield CALIBRATION / f"{weights_sha256()[:16]}.json"


def _places(checkpoint: Checkpoint) -> list[Path]:
    return list(scale_places(checkpoint.config, lambda: checkpoint.weights_sha256))


def _read(file: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return read_json_object(file)
    except ValueError as error:
        raise ValueError(f"{error}; {_way_out(checkpoint)}") from error


def _way_out(checkpoint: Checkpoint) -> str:
    return f"measure them again with {calibrate_command(checkpoint)}"
