"""A backend that serves the shapes that it was built for, on any machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from eval.config.groups import CONF
from eval.config.schema import register, register_schema
from eval.serve.config import ServeRun
from optim.base import Backend, CountedStage, StageContext
from optim.core.engines import serve


@dataclass(frozen=True)
class Shaped(Backend):
    """The stage itself, for the shapes of its examples alone."""

    def __call__(self, source: StageContext) -> CountedStage:
        return serve(source, "shaped", lambda args: source.stage.forward, tolerance=0.0)


SMALL = ("checkpoint=random_small", "policy.device=cpu")
SHAPED = (*SMALL, "optim.prefix._target_=tests.eval.serve.shaped.Shaped")


@contextmanager
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    register()
    register_schema("serve", ServeRun)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> ServeRun:
    """What `python -m eval.serve` composes."""
    with hydra():
        config = OmegaConf.to_object(compose("serve", list(overrides)))
    assert isinstance(config, ServeRun)
    return config
