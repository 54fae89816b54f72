"""A policy class from anywhere, as a policy of the configuration.

Non-obvious behaviors:
    Records show what such a policy is by its import path, the version of its package, the SHA-256 of its
    source file and its arguments. `resume=` refuses a run whose policy has changed in any of them.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eval.config.errors import one_line
from eval.config.schema import Config, ConfigError
from eval.records.provenance import installed_version
from eval.records.writer import RecordingError
from eval.specs.base import BuiltPolicy, Capture, PolicySpec
from eval.specs.facts import check_cameras, read_engagement, read_facts
from policies.base import ActionChunk, Policy, Request

T = TypeVar("T")

METHODS = ("infer", "provenance", "engagement")
MEMBERS = (*METHODS, "cameras", "needs_privileged", "replan_steps")
MOST_MS = 1e9  # that readers of a record take (`eval.records.schema.Milliseconds`)


class CustomSpec(PolicySpec):
    """A policy's own class, which gets `policy.args` as keywords."""

    def __init__(self, target: str, make: Any, args: Mapping[str, Any]) -> None:
        self.target = target
        self.make = make
        self.args = dict(args)

    def build(self, config: Config, capture: Capture, max_batch: int = 1) -> BuiltPolicy:
        """Make the policy; ConfigError where its class raises or is no `policies.base.Policy`."""
        try:
            policy = self.make(**self.args)
        except Exception as error:
            raise ConfigError(
                f"policy={config.policy.name} cannot be built with policy.args={self.args}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        return BuiltPolicy(CheckedPolicy(policy, config.policy.name, self._identity()))

    def _identity(self) -> dict[str, Any]:
        return {"target": self.target, **origin(self.make), "args": self.args}


class CheckedPolicy:
    """Another's policy under a name for the records; what it answers and says of itself is checked.

    Args:
        identity: what the records show beside the policy's own `provenance()`.

    Raises:
        ConfigError: a member of `policies.base.Policy` is missing or has a value that no runner can use or
            record.
    """

    def __init__(self, policy: Any, name: str, identity: Mapping[str, Any]) -> None:
        missing = [member for member in MEMBERS if not _has(policy, member, name)]
        if missing:
            raise ConfigError(
                f"policy={name} lacks {', '.join(missing)}, which every policy has "
                "(policies/base.py, docs/own_policy.md)"
            )
        if type(policy.replan_steps) is not int or policy.replan_steps < 1:
            raise ConfigError(f"replan_steps of policy={name} must be >= 1, got {policy.replan_steps!r:.100}")
        if not isinstance(policy.needs_privileged, bool):
            got = f"{policy.needs_privileged!r:.100}"
            raise ConfigError(f"needs_privileged of policy={name} must be True or False, got {got}")
        for member in METHODS:
            if not callable(getattr(policy, member)):
                raise ConfigError(f"{member} of policy={name} must be a method (policies/base.py)")
        self.policy: Policy = policy
        self.name = name
        self.cameras = check_cameras(name, policy.cameras)
        self.needs_privileged: bool = policy.needs_privileged
        self.replan_steps: int = policy.replan_steps
        self._identity = identity
        read_facts(name, policy.provenance, identity)
        read_engagement(name, policy.engagement)

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """See `policies.base.Policy`; ValueError where the answers are not a chunk for each request."""
        answer = self.policy.infer(requests)
        if not isinstance(answer, Sequence):
            got = type(answer).__name__
            raise ValueError(f"policy {self.name} answered with {got}; infer returns a list of ActionChunk")
        chunks = list(answer)
        if len(chunks) != len(requests):
            raise ValueError(
                f"policy {self.name} answered {len(requests)} requests with {len(chunks)} chunks; "
                "infer returns one ActionChunk for each"
            )
        for chunk in chunks:
            actions = getattr(chunk, "actions_HJ", None)
            if not isinstance(chunk, ActionChunk) or not isinstance(actions, np.ndarray):
                got = type(chunk if actions is None else actions).__name__
                raise ValueError(
                    f"policy {self.name} answered with {got}; infer returns "
                    "ActionChunk(actions_HJ) with a NumPy array (horizon, 7)"
                )
            if actions.dtype.kind not in "fiu":
                raise ValueError(
                    f"policy {self.name} answered with actions of dtype {actions.dtype}, not numbers"
                )
            if problem := _unrecordable(chunk):
                raise ValueError(f"policy {self.name} answered with {problem}")
        return chunks

    def provenance(self) -> dict[str, Any]:
        """See `policies.base.Policy`; RecordingError for what no run can record."""
        return _in_a_run(lambda: read_facts(self.name, self.policy.provenance, self._identity))

    def engagement(self) -> dict[str, dict[str, Any]]:
        """See `policies.base.Policy`; RecordingError for what no run can record."""
        return _in_a_run(lambda: read_engagement(self.name, self.policy.engagement))


def _has(policy: Any, member: str, name: str) -> bool:
    try:
        return hasattr(policy, member)
    except Exception as error:
        raise ConfigError(
            f"{member} of policy={name} raised {type(error).__name__}: {one_line(error)}"
        ) from error


def _in_a_run(read: Callable[[], T]) -> T:
    """Read what was right when the policy was built; RecordingError, which ends a run, where it is wrong."""
    try:
        return read()
    except ConfigError as error:
        raise RecordingError(str(error)) from error


def _unrecordable(chunk: ActionChunk) -> str | None:
    """Say what of a chunk has no place in the record of its inference; None where all has."""
    if not isinstance(chunk.stage_ms, Mapping) or not isinstance(chunk.backends, Mapping):
        return "stage_ms or backends that are no mapping"
    for stage, ms in chunk.stage_ms.items():
        if not isinstance(stage, str) or not isinstance(ms, float | int) or not 0 < ms <= MOST_MS:
            return f"stage_ms[{stage!r:.100}]={ms!r:.100}; it must be milliseconds > 0, as a float"
    for stage, backend in chunk.backends.items():
        if not isinstance(stage, str) or not isinstance(backend, str):
            return f"backends[{stage!r:.100}]={backend!r:.100}; both must be text"
    if not isinstance(chunk.setup_ms, float | int) or not 0 <= chunk.setup_ms <= MOST_MS:
        return f"setup_ms={chunk.setup_ms!r:.100}; it must be milliseconds >= 0, as a float"
    return None


def origin(made_from: Any) -> dict[str, Any]:
    """Describe where a class or function comes from: its package's version, its file's SHA-256.

    Either is None where there is none: a class in a notebook has no file, one beside the command no version.
    """
    module = str(getattr(made_from, "__module__", ""))
    file = getattr(sys.modules.get(module), "__file__", None)
    return {
        "version": _version(module.partition(".")[0]),
        "source_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None,
    }


def _version(package: str) -> str | None:
    [distribution, *_] = packages_distributions().get(package, [package])
    return installed_version(distribution)
