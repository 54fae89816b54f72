"""The shipped checkpoint as the default configuration runs it, in float32 on the CPU."""

from hydra import compose, initialize_config_dir

from eval.app.command import CONF
from eval.config.compose import check
from eval.config.schema import register
from eval.specs.choose import make_spec
from policies.base import EpisodeKey, Policy

KEY = EpisodeKey("libero_spatial", 4, 0, 7)


def shipped_policy() -> Policy:
    """Return the policy of `python -m eval`, on the CPU."""
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        config = check(compose("config", ["policy.device=cpu"]))
    return make_spec(config.policy).build(config, capture=lambda policy: []).policy
