"""policy=remote from the command line: its options are checked, and it connects when it is built."""

import pytest

from eval.config.compose import configure
from eval.config.schema import Config, ConfigError
from eval.specs.choose import checked_spec
from eval.specs.remote import RemoteSpec
from policies.remote.link import RemoteError
from tests.policies.remote.servers import ACTIONS, answering, request, serving

URL = "ws://127.0.0.1:1"


def config(*overrides: str, url: str = URL) -> Config:
    return configure(["policy=remote", f"policy.url={url}", "policy.label=weights", *overrides])


def test_it_connects_and_acts() -> None:
    with serving(answering({"actions": ACTIONS})) as url:
        remote = config("policy.replan_steps=2", url=url)
        built = checked_spec(remote, []).build(remote, capture=lambda policy: [], max_batch=4)
        [chunk] = built.policy.infer([request()])
    assert (built.policy.name, built.policy.replan_steps) == ("remote", 2)
    assert (built.batching.sizes, built.batching.one_at_a_time is None) == ((1,), False)
    assert chunk.actions_HJ.tolist() == ACTIONS.tolist()


def test_what_no_run_can_record_is_an_error_of_the_start() -> None:
    """Hashes as long as a book, from a server that says it is ours."""
    own = {"server": "libero-vla-eval", "cameras": [], "image_size": None, "replan_steps": 5}
    metadata = {**own, "policy": {"weights_sha256": "a" * 2000}}
    with serving(answering({"actions": ACTIONS}, metadata)) as url:
        remote = config(url=url)
        with pytest.raises(
            ConfigError, match=r"^provenance\(\) of policy=remote cannot be recorded: weights_sha"
        ):
            checked_spec(remote, []).build(remote, capture=lambda policy: [])


def test_nobody_there_is_an_error_of_the_start() -> None:
    remote = config("policy.connect_timeout_s=0.1")
    with pytest.raises(RemoteError, match=r"did not open a connection"):
        checked_spec(remote, []).build(remote, capture=lambda policy: [])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["policy.url=http://x"], "policy.url must be ws://HOST:PORT"),
        (["policy.label=' '"], "policy.label must say which weights"),
        (["policy.protocol=grpc"], "policy.protocol must be one of openpi, vla_eval"),
        (["policy.timeout_s=0"], "policy.timeout_s must be > 0"),
        (["policy.api_key_env=NO_KEY_OF_A_TEST"], "policy.api_key_env=NO_KEY_OF_A_TEST is not set"),
        (["policy.whole_turn=true"], "policy.whole_turn is read with policy.protocol=vla_eval alone"),
        (["policy.url=ws://x:99999"], "policy.url must be ws://HOST:PORT, got 'ws://x:99999'"),
        (["policy.url='ws://x?room=3'"], "policy.url must hold no name, no password and nothing behind a"),
        (["policy.protocol=vla_eval", "runner=ray"], "runner must be local, got ray"),
        (["checkpoint=native"], "policy=remote has no stages"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_opened(overrides: list[str], says: str) -> None:
    composed = [text for text in overrides if not text.startswith("checkpoint")]
    with pytest.raises(ValueError, match=says):
        checked_spec(config(*composed), overrides)


def test_a_policy_without_these_options_is_told_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match=r"policy=baseline has no url; choose policy=remote"):
        RemoteSpec().check(configure([]))


def test_the_url_and_the_label_must_be_given() -> None:
    from omegaconf.errors import MissingMandatoryValue

    with pytest.raises(MissingMandatoryValue, match=r"url"):
        configure(["policy=remote"])
