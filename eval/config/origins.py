"""Where the values of conf/checkpoint come from: the chosen YAML, or a key that says something else."""

from dataclasses import fields
from typing import Any

from eval.config.groups import load_yaml, options
from eval.config.schema import Config
from policies.pi05.checkpoint_config import CheckpointConfig


def checkpoint_origins(config: Config) -> dict[str, str]:
    """Name the origin of each key of the checkpoint's configuration, as `load_checkpoint` takes them.

    A value that the YAML has is the YAML's, also where the command line repeats it.
    """
    checkpoint = config.checkpoint
    yaml = checkpoint_yaml(checkpoint.name)
    origins = {
        key: f"assumed by checkpoint={checkpoint.name}"
        for key in (entry.name for entry in fields(CheckpointConfig))
        if key in yaml and yaml[key] == getattr(checkpoint, key)
    }
    if config.denoise.steps != checkpoint.denoise_steps:
        origins["denoise_steps"] = "denoise.steps"
    return origins


def trained_suites(checkpoint: CheckpointConfig) -> list[str] | None:
    """The suites that the weights were trained for; None where nobody says.

    What a YAML says is about the weights that it names: by its sha256, or by its path where it has none.
    """
    yaml = checkpoint_yaml(checkpoint.name)
    if checkpoint.suites != yaml.get("suites"):
        return checkpoint.suites  # the command line says it of whatever weights it chose
    key = "sha256" if yaml.get("sha256") else "path"
    return checkpoint.suites if getattr(checkpoint, key) == yaml.get(key) else None


def checkpoint_yaml(name: str) -> dict[str, Any]:
    """Read a file of conf/checkpoint with those that its defaults name; empty where there is none."""
    if name not in options("checkpoint"):
        return {}
    own = load_yaml("checkpoint", name)
    merged: dict[str, Any] = {}
    for below in own.pop("defaults", []):
        merged |= checkpoint_yaml(below)
    return merged | own
