"""What a policy of others says of itself, held to what a run records and its readers read."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import MaxLen
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

from eval.config.errors import one_line
from eval.config.schema import ConfigError
from eval.records.foreign import OPEN, problem_of
from eval.records.run_json import SETTING, PolicyFacts, Served
from eval.records.schema import Count, to_plain
from eval.sim.env import CAMERAS
from policies.text import shorten

MOST = 4 * 2**20  # characters of JSON; run.json is read up to 32 MiB
EMPTY: Mapping[str, Any] = {}
Name = Annotated[str, MaxLen(1000)]


Setting = TypedDict("Setting", {"from": str, "value": Any})
"""One of `settings`, as `eval.render.settings` words it."""


class Facts(PolicyFacts, total=False):
    """`Policy.provenance`: what goes into each episode's record and what is printed, beside `PolicyFacts`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]  # pydantic's own place for it

    checkpoint: Name | None
    weights_sha256: Name | None
    weights_label: Name | None
    horizon: Count
    settings: dict[str, Setting]


def read_facts(
    name: str, provenance: Callable[[], Any], identity: Mapping[str, Any] = EMPTY
) -> dict[str, Any]:
    """Ask policy `name` for its provenance, in JSON's types, and add what identifies it.

    Raises ConfigError for what no run can record.
    """
    facts: dict[str, Any] = _read(f"provenance() of policy={name}", provenance, Facts, identity)
    missing = [key for key in SETTING if key not in facts]
    if "dtype" in facts and missing:
        raise ConfigError(
            f"provenance() of policy={name} has a dtype, and must have {shorten(missing)} too; add them, or "
            "give it another name"
        )
    return facts


def read_engagement(name: str, engagement: Callable[[], Any]) -> dict[str, dict[str, Any]]:
    """Ask policy `name` how its stages served, in JSON's types; ConfigError for what no run can record."""
    served: dict[str, dict[str, Any]] = _read(f"engagement() of policy={name}", engagement, dict[str, Served])
    return served


def check_cameras(name: str, cameras: Any) -> tuple[str, ...]:
    """Take the cameras of policy `name`; ConfigError for anything but different names that there are."""
    if (
        not isinstance(cameras, Sequence)
        or isinstance(cameras, str)
        or not all(isinstance(camera, str) for camera in cameras)
        or len(set(cameras)) != len(cameras)
    ):
        raise ConfigError(f"cameras of policy={name} must be a tuple of names, got {cameras!r:.100}")
    if strange := set(cameras) - set(CAMERAS):
        known = ", ".join(CAMERAS)
        raise ConfigError(f"cameras of policy={name} must be among {known}, got {shorten(sorted(strange))}")
    return tuple(cameras)


def _read(what: str, ask: Callable[[], Any], kind: Any, identity: Mapping[str, Any] = EMPTY) -> Any:
    from pydantic import TypeAdapter  # a twentieth of a second, which `--help` does not need
    from pydantic_core import from_json

    try:
        said = ask()
    except Exception as error:
        raise ConfigError(f"{what} raised {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(said, Mapping):
        raise ConfigError(f"{what} must return a mapping, got {said!r:.100}")
    try:
        written = json.dumps(to_plain({**said, **identity}, "it"), allow_nan=False)
        if len(written) > MOST:
            raise ConfigError(f"{what} must have at most {MOST} characters in JSON, got {len(written)}")
        return TypeAdapter(kind).validate_python(from_json(written, allow_inf_nan=False))
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"{what} holds mappings or lists too deep to record") from error
    except (TypeError, ValueError) as error:
        problem = problem_of(error) if isinstance(error, ValueError) else str(error)
        raise ConfigError(f"{what} cannot be recorded: {problem}") from error
