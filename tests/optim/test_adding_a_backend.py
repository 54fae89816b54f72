"""A backend is one file and one YAML for each stage that it serves."""

import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from eval.app.command import CONF
from eval.config.compose import check
from eval.config.schema import register
from eval.specs.choose import make_spec
from tests.optim.small import random_request

BACKEND = '''
"""Toy: the stage, called through a wrapper that serves the captured shapes alone."""

from dataclasses import dataclass

from optim.base import CountedStage, Backend, StageContext
from optim.core.engines import serve


@dataclass(frozen=True)
class Toy(Backend):
    """Multiplies by `factor`, which had better be 1."""

    factor: float = 1.0

    def __call__(self, source: StageContext) -> CountedStage:
        def build(args):
            def engine(*args):
                keys, values, mask = source.stage(*args)
                return self.factor * keys, values, mask

            return engine

        return serve(source, "toy", build, tolerance=1e-3)
'''


@pytest.mark.parametrize("factor", ["1.0", "1.1"])
def test_one_file_and_one_yaml_add_a_backend(
    factor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_backend.py").write_text(BACKEND)
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "optim" / "prefix" / "toy.yaml").write_text("_target_: toy_backend.Toy\nfactor: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)

    register()
    overrides = ["optim/prefix=toy", "checkpoint=random_small", "policy.device=cpu"]
    with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
        config = check(compose("config", [*overrides, f"optim.prefix.factor={factor}"]))
    request = random_request(0)
    if factor != "1.0":
        with pytest.raises(ValueError, match=r"optim.prefix=Toy\(factor=1.1\) did not engage: ParityError"):
            make_spec(config.policy).build(config, lambda policy: [request])
        return
    policy = make_spec(config.policy).build(config, lambda policy: [request]).policy
    with torch.no_grad():
        policy.infer([request])
    engagement = policy.engagement()["prefix"]
    assert (engagement["backend"], engagement["calls"], engagement["misses"]) == ("toy", 1, 0)
    assert policy.engagement()["vision"]["backend"] == "eager"
