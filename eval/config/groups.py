"""Read conf/: the options of a group, the backends of a stage, the recipe of a policy."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from policies.files import ROOT

CONF = ROOT / "conf"


def options(group: str, folders: Iterable[Path] = ()) -> list[str]:
    """List a group's options, also those in a user's folders; files that begin with _ are parts of others."""
    files = (file for folder in (CONF, *folders) for file in (folder / group).glob("[!_]*.yaml"))
    return sorted({file.stem for file in files})


def backends(stage: str) -> dict[str, dict[str, Any]]:
    """Read the backends of a stage, each with its options as its YAML has them."""
    group = f"optim/{stage}"
    return {name: load_yaml(group, name) for name in options(group)}


def backend_name(stage: str, chosen: Mapping[str, Any]) -> str:
    """Find the backend whose YAML `chosen` was composed from; its class where no YAML has that."""
    alike = {
        name: sum(chosen.get(key) == value for key, value in yaml.items())
        for name, yaml in backends(stage).items()
        if yaml["_target_"] == chosen["_target_"]
    }
    return max(alike, key=lambda name: alike[name], default=str(chosen["_target_"]))


def recipe(policy: str) -> dict[str, str]:
    """The backend of each stage, and of `images`, that a policy's own YAML names; empty without a YAML."""
    if policy not in options("policy"):
        return {}
    yaml = load_yaml("policy", policy)
    named = {"images": yaml["images"]} if "images" in yaml else {}
    for entry in yaml.get("defaults", []):
        [(group, name)] = entry.items() if isinstance(entry, dict) else [(entry, None)]
        if group.startswith("/optim/"):
            named[group.partition("@")[0].removeprefix("/optim/")] = name
    return named


def policy_label(policy: str, config: Mapping[str, Any]) -> str:
    """Name a policy, with the stages whose backend is not that of its YAML; `config` has plain values."""
    optim = config.get("optim") or {}
    other = [
        f"{stage} {name}"
        for stage, own in recipe(policy).items()
        if "_target_" in (optim.get(stage) or {}) and (name := backend_name(stage, optim[stage])) != own
    ]
    return f"{policy} ({', '.join(other)})" if other else policy


def load_yaml(group: str, name: str) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml")))
