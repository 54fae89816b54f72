"""Whether two runs can be compared, and in what they differ besides the policy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from eval.analysis.summary import Summary, is_random
from eval.records.reader import Run
from eval.records.schema import EpisodeRecord
from eval.records.trees import SOURCES
from eval.sim.plus import start_of
from eval.sim.suites import SuiteName
from policies.base import EpisodeKey
from policies.text import shorten

Pair = tuple[EpisodeRecord, EpisodeRecord]
"""BASE's and NEW's record of one episode."""

Names = tuple[str, str]
"""What messages call the first run of a comparison, and the second."""

CLOCK = ("latency_ms", "latency_from", "latency_policy", "speed", "beta", "jacobian")
BENCHMARK: Mapping[str, tuple[str, ...]] = {
    "task definitions": ("simulator", "bddl_sha256"),
    "initial states": ("simulator", "init_states_sha256"),
    "assets": ("simulator", "assets_sha256"),
}

BASE_AND_NEW: Names = ("BASE", "NEW")


class NotComparable(ValueError):
    """A difference of these two runs would mean nothing; the message says why."""


def refuse(base: Run, new: Run, base_summary: Summary, new_summary: Summary, names: Names) -> None:
    """Raise NotComparable for runs whose difference would mean nothing."""
    for name, run, summary in zip(names, (base, new), (base_summary, new_summary), strict=True):
        labels = {summary.weights_label, *(episode.weights_label for episode in run.episodes)}
        for label in sorted(filter(is_random, labels), key=str):
            raise NotComparable(f"{name} has {label}, whose success means nothing; use a trained checkpoint")
    across = are_arms(base_summary.suites, new_summary.suites, names)
    same: dict[str, tuple[Any, Any]] = {
        "seeding": (base_summary.seeding, new_summary.seeding),
        "checkpoint_sha256": (base_summary.checkpoint_sha256, new_summary.checkpoint_sha256),
    }
    in_run_json = {
        "norm_stats_sha256": ("policy", "norm_stats_sha256"),
        "tokenizer_sha256": ("policy", "tokenizer_sha256"),
        "suite.max_steps": ("config", "suite", "max_steps"),
        "suite.round_camera": ("config", "suite", "round_camera"),
        **({} if across else {"instructions": ("instructions",)}),
    }
    recorded = {name: _both(base, new, *path) for name, path in in_run_json.items()}
    same |= {name: both for name, both in recorded.items() if None not in both}
    for name, (before, after) in same.items():
        if before != after:
            raise NotComparable(f"{name} of the two runs must be the same, got {before} and {after}")


def are_arms(base: Iterable[str], new: Iterable[str], names: Names) -> bool:
    """Whether BASE's suites are the control arms of NEW's; false where they are the same.

    Raises NotComparable for others.
    """
    suites = sorted(base), sorted(new)
    if suites[0] == suites[1]:
        return False
    parsed = [[SuiteName.parse(suite) for suite in one] for one in suites]
    arms = [sorted(suite.arm for suite in one) for one in parsed]
    if arms[0] == arms[1] and all(suite.is_control for suite in parsed[0]):
        if any(suite.is_control for suite in parsed[1]):
            raise NotComparable(f"{names[1]} must be all of the perturbed arm, got {shorten(suites[1])}")
        return True
    way_out = ""
    if arms[0] == arms[1]:
        way_out = f"; the control arm comes first: {names[1]}, then {names[0]}"
    elif (shared := {suite.base for suite in parsed[0]} & {suite.base for suite in parsed[1]}) and any(
        suite.dimension for suite in parsed[1]
    ):
        way_out = (
            f"; pair tasks of {shorten(sorted(shared))} with perturbed ones by the control arm, which has "
            f"their noise keys: suite={parsed[1][0].arm} suite.control=true"
        )
    raise NotComparable(f"suites of the two runs must be the same, got {suites[0]} and {suites[1]}{way_out}")


def pair_key(key: EpisodeKey) -> EpisodeKey:
    """The key by which episodes are paired: of a control arm's, that of the perturbed one."""
    return replace(key, suite=SuiteName.parse(key.suite).arm)


def cluster_of(record: EpisodeRecord) -> tuple[str, int]:
    """The task whose pairs are drawn together: of LIBERO-Plus's the base task, of which they are all.

    Raises NotComparable for a task that LIBERO-Plus has not.
    """
    if not SuiteName.parse(record.suite).is_plus:
        return record.suite, record.task_id
    try:
        return start_of(record.suite, record.task_id)
    except ValueError as error:
        raise NotComparable(str(error)) from error


def differing(base: Run, new: Run, pairs: Sequence[Pair], names: Names) -> list[str]:
    """Say in what the two runs differ besides the policy."""
    warnings = []
    across = pairs[0][0].suite != pairs[0][1].suite
    for name, path in () if across else BENCHMARK.items():
        before, after = _both(base, new, *path)
        if None not in (before, after) and before != after:
            warnings.append(f"the benchmark differs: {name} have the hashes {before[:12]} and {after[:12]}")
    starts = sum(b.initial_state_sha256 != n.initial_state_sha256 for b, n in pairs)
    if starts and not across:
        warnings.append(f"{starts} of {len(pairs)} pairs did not start from the same simulator state")
    if len({cluster_of(b) for b, _ in pairs}) == 1:
        warnings.append("all pairs are of one task: nothing is known of others")
    # the hash is of the first episode of a run
    frames = _both(base, new, "first_frame_sha256")
    if base.episodes[0].key == new.episodes[0].key and None not in frames and frames[0] != frames[1]:
        warnings.append("the first camera image differs: renderer, versions or settle steps do")
    for name, run in zip(names, (base, new), strict=True):
        if run.run.get("finished") is False:
            warnings.append(f"{name}: run.json says that the run did not finish")
        loaded = sum(record.under_load for record in run.inferences)
        if loaded:
            warnings.append(
                f"{name}: others ran beside {loaded} of {len(run.inferences)} inferences, "
                "whose times are left out"
            )
    named: dict[str, tuple[str, ...]] = {
        "GL backend": ("gl_backend",),
        "GL renderer": ("simulator", "gl_renderer"),
        "device": ("policy", "device"),
        "GPU driver": ("provenance", "gpu", "driver"),
        "CPU": ("provenance", "cpu", "model"),
        "torch's instructions": ("provenance", "cpu", "torch_capability"),
        "Python": ("provenance", "python"),
        "replan steps": ("policy", "replan_steps"),
        **{f"clock.{key}": ("config", "clock", key) for key in CLOCK},
    }
    clocks = tuple((at(run.run, ("config", "clock", "name")) or "free") for run in (base, new))
    if clocks[0] != clocks[1]:
        warnings.append(f"clock differs: {clocks[0]} and {clocks[1]}")
    trees = _both(base, new, "provenance", "trees")
    if None in trees:  # an older record
        named["commit"] = ("provenance", "git", "commit")
    named |= {f"code of {name}/": ("provenance", "trees", name) for name in SOURCES if None not in trees}
    packages = _both(base, new, "provenance", "packages")
    for package in sorted({*(packages[0] or {}), *(packages[1] or {})}):
        named[package] = ("provenance", "packages", package)
    for name, where in named.items():
        before, after = _both(base, new, *where)
        if before != after:
            warnings.append(f"{name} differs: {_spell(before)} and {_spell(after)}")
    return warnings


def _both(base: Run, new: Run, *path: str) -> tuple[Any, Any]:
    return at(base.run, path), at(new.run, path)


def at(run: Mapping[str, Any], path: Iterable[str]) -> Any:
    """What run.json says under nested keys; None where it does not."""
    value: Any = run
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _spell(value: Any) -> str:
    return "unknown" if value is None else str(value)
