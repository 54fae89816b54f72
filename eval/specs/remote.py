"""A policy behind a websocket, as a policy of the configuration."""

from dataclasses import fields
from typing import Any

from eval.config.schema import Config, ConfigError, PolicyConfig, RemotePolicyConfig
from eval.specs.base import BuiltPolicy, Capture, PolicySpec
from eval.specs.batching import Batching
from eval.specs.facts import read_facts

CHECKED = (
    *("url", "label", "protocol", "timeout_s", "connect_timeout_s"),
    *("replan_steps", "max_message_mb", "whole_turn"),
)
ONE_AT_A_TIME = "the server is asked for one observation at a time"


class RemoteSpec(PolicySpec):
    """Reads `RemotePolicyConfig`."""

    def check(self, config: Config) -> None:
        from policies.remote.options import read_key
        from policies.remote.policy import check_options

        options = remote_options(config)
        check_options(**{key: options[key] for key in CHECKED})
        read_key("policy.api_key_env", options["api_key_env"])
        if config.runner.name == "ray" and options["protocol"] == "vla_eval":
            raise ConfigError(
                "policy.protocol=vla_eval has one episode on a connection, so runner must be local, got ray"
            )

    def known_chunks(self, config: Config) -> tuple[int | None, int | None]:
        return remote_options(config)["replan_steps"], None

    def build(self, config: Config, capture: Capture, max_batch: int = 1) -> BuiltPolicy:
        """Connect; RemoteError, an OSError, where no server answers, ConfigError for what no run records."""
        from policies.remote import RemotePolicy

        policy = RemotePolicy(name=config.policy.name, **remote_options(config))
        read_facts(policy.name, policy.provenance)
        return BuiltPolicy(policy, Batching((1,), one_at_a_time=ONE_AT_A_TIME if max_batch > 1 else None))

    def wants_gpu(self, config: Config) -> bool:
        return False


def remote_options(config: Config) -> dict[str, Any]:
    """The options of `RemotePolicy`; ConfigError where the policy has none."""
    if not isinstance(config.policy, RemotePolicyConfig):
        raise ConfigError(
            f"policy={config.policy.name} has no url; choose policy=remote, or begin your YAML as "
            "conf/policy/remote.yaml begins"
        )
    shared = {field.name for field in fields(PolicyConfig)}
    return {
        field.name: getattr(config.policy, field.name)
        for field in fields(RemotePolicyConfig)
        if field.name not in shared
    }
