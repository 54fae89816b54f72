"""A stage that is compiled says whether its code was on disk; others keep nothing there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.core.global_hydra import GlobalHydra

from eval.config.compose import configure
from eval.specs.pi05_build import choose_backends, eager_policy, load, optimise
from optim.base import Backend, CountedStage, StageContext
from optim.core import code_cache


@dataclass(frozen=True)
class Compiles(Backend):
    """The stage, which claims to be compiled."""

    needs_examples: ClassVar[bool] = False
    compiles: ClassVar[bool] = True

    def __call__(self, source: StageContext) -> CountedStage:
        return CountedStage("compiles", source.stage)


def details(target: str | None) -> dict[str, dict[str, Any]]:
    """Build the small policy with this class for its prefix; return the stages' details."""
    GlobalHydra.instance().clear()
    config = configure(["checkpoint=random_small", "policy.device=cpu"])
    if target is not None:
        config.optim.prefix = {"_target_": target}
    checkpoint = load(config)
    eager = eager_policy(config, checkpoint)
    policy = optimise(config, eager, checkpoint, choose_backends(config), lambda policy: [])
    return {name: facts["details"] for name, facts in policy.engagement().items()}


def test_details_say_if_code_was_there_and_eager_stages_keep_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_cache, "FOLDER", tmp_path)
    for name in code_cache.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert details(None) == {"vision": {}, "prefix": {}, "denoise": {}}
    assert not list(tmp_path.iterdir())
    compiles = f"{__name__}.Compiles"
    assert [details(compiles)["prefix"], details(compiles)] == [
        {"compiled_code": "cold"},
        {"vision": {}, "prefix": {"compiled_code": "warm"}, "denoise": {}},
    ]
