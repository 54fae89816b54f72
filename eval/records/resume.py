"""Checks before a run is resumed: it exists, it is not finished, and nothing has changed.

Non-obvious behaviors:
    An episode that was running is run again, and its inferences from before are not counted; errors are tried
    again, and the last attempt counts. Each process has its own warm-up inferences.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records.episodes import Episodes
from eval.records.folders import require_records
from eval.records.foreign import DamagedRecords
from eval.records.reader import Run, read_run
from eval.records.run_json import RUN_FILE, SCALES, is_decided, read_run_json
from eval.records.schema import to_plain
from eval.sim.benchmark import HASHES
from eval.sim.stack import PINS
from policies.base import EpisodeKey
from policies.files import ROOT
from policies.text import shorten

# May differ between the processes of a run: episodes do not depend on them.
FREE = ("runner", "tracking", "video", "resume", "record_observations", "checkpoint.suites")
# May differ between runs that are joined.
WHICH_EPISODES = (
    "shard",
    "suite.tasks",
    *(f"protocol.{key}" for key in ("name", "num_tasks", "first_episode", "episodes")),
)
# Options that backends of a stage had once, with the value that says what they do today.
GONE: Mapping[str, Any] = {
    "weights": "bf16",
    "kernel": "ring",
    "granularity": "stage",
    "optimization_level": None,
    "tolerance": None,
}
# What `policy.kind` of old records is called today.
TARGETS = {"pi05": "eval.specs.pi05.Pi05Spec", "oracle": "eval.specs.oracle.OracleSpec"}
SIMULATOR = (*PINS, "gl", *HASHES)  # of `eval.sim.benchmark.prepare_suite`: what decides physics and pixels


class Changed(ValueError):
    """Records of before and after would not belong to one run; the message names the differences."""


def recorded(folder: Path) -> dict[str, Any]:
    """Read run.json of a run that can be continued or joined with others.

    Raises FileNotFoundError or ValueError where there is no such run, or nothing to compare with.
    """
    require_records(folder)
    path = folder / RUN_FILE
    try:
        run = read_run_json(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing: the run ended before its first episode, and there is nothing to compare; "
            "start a new one, which may take the same folder"
        ) from None
    if "episodes" not in run:
        raise ValueError(f"{path} does not say which episodes were planned; start a new run")
    origin = run.get("provenance")
    lacking = [key for key in ("config", "policy", "overrides", "provenance") if run.get(key) is None]
    lacking += [
        f"provenance.{key}" for key in ("git", "packages") if origin is not None and key not in origin
    ]
    if lacking:
        raise DamagedRecords(path, f" lacks {shorten(lacking)}; start a new run")
    return run


def refuse_joined(folder: Path, run: Mapping[str, Any]) -> None:
    """Raise ValueError for the output of `eval.merge`: its parts can be continued, the whole cannot."""
    if run.get("parts"):
        parts = shorten(part.get("folder", "?") for part in run["parts"])
        raise ValueError(f"{folder} joins other runs ({parts}); go on with those, then join them again")


def nothing_left(folder: Path, run: Mapping[str, Any]) -> Run | None:
    """Read the records of a run that was decided or has finished all; None for one to go on with."""
    if run.get("finished") is not True:
        return None
    try:
        records = read_run(folder)
    except ValueError:
        return None  # damaged since: `reopen` repairs it or says what is wrong
    planned = planned_episodes(run)
    return records if is_decided(run) or planned <= finished_episodes(records) else None


def planned_episodes(run: Mapping[str, Any]) -> frozenset[EpisodeKey]:
    """Episodes that run.json has as planned."""
    parts = [Episodes.from_dict(part) for part in run["episodes"]]
    return frozenset(key for part in parts for key in part.keys())  # noqa: SIM118  no mapping


def finished_episodes(run: Run) -> frozenset[EpisodeKey]:
    """Episodes that need no other attempt."""
    return frozenset(episode.key for episode in run.episodes if episode.success is not None)


def origin_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List how code and packages of two `provenance.collect()` differ."""
    old, new = (
        flat({"git": at["git"], "trees": at.get("trees") or {}, "packages": at["packages"]})
        for at in (before, now)
    )
    keys = [key for key in old if key not in ("git.error", "git.untracked")]
    return [f"{key} was {old[key]}, is {new.get(key)}" for key in keys if old[key] != new.get(key)]


def refuse_changed(
    what: Path | str, before: Mapping[str, Any], now: Mapping[str, Any], which: tuple[str, ...] = FREE
) -> None:
    """Raise Changed when two run.json differ in the configuration, the policy or the simulator.

    Args:
        what: has changed; for the message.
        now: parts that it lacks are not compared.
        which: keys of the configuration that may differ.
    """
    changes = []
    for part in ("config", "policy", "simulator"):
        if part in now:
            old, new = _part(before, part), _part({part: to_plain(now[part], part)}, part)
            changes += [
                f"{key if part == 'config' else f'{part} {key}'} was {old.get(key)!r}, is {new.get(key)!r}"
                for key in sorted(old.keys() | new.keys())
                if portable(old.get(key)) != portable(new.get(key))
                and _counts(part, key, which)
                and not (part == "config" and key not in new and _is_gone(key, old[key]))
                and not (key in HASHES and not (key in old and key in new))  # older records have none
                and not (part == "policy" and _is_unrecorded(key, before["policy"]))
            ]
    if changes:
        raise Changed(f"{what} has another configuration, policy or simulator: {shorten(changes, '; ')}")


def current_overrides(recorded: Sequence[str]) -> list[str]:
    """Leave out of a run's overrides the options that are gone and said what holds today."""
    return [text for text in recorded if not _is_gone(*_option(text))]


def _part(run: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Flatten a part of run.json; old records' `policy.kind` and lack of a clock are worded as today."""
    value = run.get(part) or {}
    if part == "config":
        value = {"clock": {"name": "free"}, **value}
    kind = (value.get("policy") or {}).get("kind") if part == "config" else None
    if isinstance(kind, str) and kind in TARGETS:
        own = {key: item for key, item in value["policy"].items() if kind == "pi05" or key == "name"}
        own.pop("kind", None)
        value = {**value, "policy": {**own, "_target_": TARGETS[kind]}}
    return flat(value)


def _option(override: str) -> tuple[str, Any]:
    key, _, value = override.lstrip("+").partition("=")
    return key, None if value == "null" else value


def _is_gone(key: str, value: Any) -> bool:
    """Whether an old record's option says what its backend does today without it."""
    where, _, option = key.rpartition(".")
    return where.startswith("optim.") and option in GONE and GONE[option] == value


def _is_unrecorded(key: str, policy: Mapping[str, Any]) -> bool:
    """Whether a run is older than the record of its checkpoint's settings, or of its FP8 scales."""
    part = key.partition(".")[0]
    return part in ("settings", SCALES) and part not in policy


def portable(value: Any) -> Any:
    """Name paths below the project relative to it, in a mapping too, so that a record of one checkout is
    resumed in another."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    return value.removeprefix(f"{ROOT}/") if isinstance(value, str) else value


def _counts(part: str, key: str, free: tuple[str, ...]) -> bool:
    if part == "simulator":
        return key in SIMULATOR
    return part == "policy" or not any(key == name or key.startswith(f"{name}.") for name in free)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings, with dots in the keys; lists are values."""
    flattened: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flattened |= flat(item, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = item
    return flattened
