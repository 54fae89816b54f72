"""The settings that a checkpoint was loaded with, in words, by where they come from."""

from collections.abc import Mapping
from typing import Any


def spell_settings(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Word the `settings` of `Checkpoint.provenance`, by file: `config.json: horizon 50, ...; ...`."""
    groups: dict[str, list[str]] = {}
    for name, stated in settings.items():
        groups.setdefault(_group(stated["from"]), []).append(f"{name} {_value(stated['value'])}")
    return "; ".join(f"{source}: {', '.join(words)}" for source, words in groups.items())


def _group(source: str) -> str:
    """The file of `config.json chunk_size`; anything else whole, as what the command line overrides."""
    file, _, _ = source.partition(" ")
    return (
        file if file.endswith(".json") and ";" not in source else source.replace(":", ",").replace(";", ",")
    )


def _value(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
