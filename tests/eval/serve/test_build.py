"""What is refused before a policy is built, and what it is built for."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from eval.config.groups import CONF
from eval.config.schema import ConfigError
from eval.serve.build import BoundedPolicy, build, prepare, synthetic_requests
from eval.serve.cli import bind, check
from eval.serve.config import read_api_key
from eval.specs.choose import make_spec
from policies.base import EpisodeKey, Observation, Request
from policies.pi05.norm_stats import Normalizer
from policies.pi05.policy import Pi05Policy
from policies.remote.fields import CAMERAS
from tests.eval.serve.served import EchoPolicy, serving
from tests.eval.serve.shaped import SHAPED, SMALL, composed
from tests.optim.small import eager_policy, random_checkpoint, random_request


def asked(words: int, size: int = 224) -> Request:
    images = dict.fromkeys(CAMERAS, np.zeros((size, size, 3), np.uint8))
    return Request(
        Observation(images, np.zeros(8), " ".join(["bowl"] * words)), EpisodeKey("client", 0, 0, 7), 0
    )


def test_requests_have_every_padded_length_and_every_image_size() -> None:
    policy = eager_policy(random_checkpoint(), prompt_multiple=16)
    requests = synthetic_requests(policy, [224, 256, 128])
    lengths = [policy.preprocess.prompt_length(request.observation, "lean") for request in requests]
    assert lengths[:-2] == list(range(16, policy.dims.max_token_len + 16, 16))
    sizes = [request.observation.images[CAMERAS[0]].shape[0] for request in requests]
    assert sizes == [224] * (len(requests) - 2) + [256, 128]


def test_a_limit_leaves_the_longer_prompts_out() -> None:
    policy = eager_policy(random_checkpoint(), prompt_multiple=16)
    requests = synthetic_requests(policy, [224], 20)
    assert [policy.preprocess.prompt_length(request.observation, "lean") for request in requests] == [16, 32]
    with pytest.raises(ConfigError, match=r"server.max_prompt_tokens must leave room"):
        synthetic_requests(policy, [224], 1)


def test_the_full_form_has_one_length() -> None:
    policy = eager_policy(random_checkpoint(), form="full")
    assert len(synthetic_requests(policy, [224])) == 1


def test_with_the_state_in_the_prompt_the_shortest_prompt_is_covered() -> None:
    checkpoint = random_checkpoint(state_in_prompt=True, state_prompt_dims=8)
    policy = eager_policy(checkpoint, prompt_multiple=16)
    lengths = {
        policy.preprocess.prompt_length(request.observation, "lean")
        for request in synthetic_requests(policy, [224])
    }
    normalizer = policy.preprocess.state
    assert isinstance(normalizer, Normalizer)
    for seed in range(20):
        state = normalizer.unnormalize(np.random.default_rng(seed).uniform(-1, 1, 8))
        observation = replace(random_request(0, "").observation, state=state)
        assert policy.preprocess.prompt_length(observation, "lean") in lengths


def test_backends_built_for_shapes_serve_prompts_of_any_length_and_none_is_missed() -> None:
    config = composed(*SHAPED, "denoise.steps=1", "server.max_prompt_tokens=40")
    spec = make_spec(config.policy)
    prepared = prepare(config, spec)
    assert prepared.pi05_options().prompt_multiple == 16
    policy = build(prepared, spec)
    for words in (0, 1, 7, 12):
        policy.infer([asked(words, size=64)])
    engagement = policy.engagement()["prefix"]
    assert (engagement["backend"], engagement["calls"], engagement["misses"]) == ("shaped", 4, 0)
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens, .*server.max_prompt_tokens=40"):
        policy.infer([asked(60)])
    assert policy.engagement()["prefix"]["refused"] == 0


def test_eager_stages_pad_nothing() -> None:
    config = composed(*SMALL)
    assert prepare(config, make_spec(config.policy)).pi05_options().prompt_multiple == 1


def test_a_multiple_that_was_chosen_stays() -> None:
    config = composed(*SHAPED, "policy.prompt_multiple=8")
    assert prepare(config, make_spec(config.policy)).pi05_options().prompt_multiple == 8


def test_images_of_another_size_than_was_built_are_refused_by_the_servers_key() -> None:
    policy = BoundedPolicy(eager_policy(random_checkpoint()), None, (224, 256))
    policy.infer([asked(1, size=256)])
    with pytest.raises(ValueError, match=r"has 100 x 100 pixels, .*server.image_sizes=\[224, 256\]"):
        policy.infer([asked(1, size=100)])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["suite=libero_10"], "eval.serve does not read suite=libero_10; leave it out"),
        (["+runner.workers=3"], r"eval.serve does not read \+runner.workers=3"),
        (["protocol=full"], "does not read protocol=full"),
        (["+experiment=oracle_full"], r"does not read \+experiment=oracle_full"),
        (["server.max_prompt_tokens=64"], "policy=baseline builds nothing for a prompt's length"),
        (["server.image_sizes=[64]"], "server.image_sizes is read with policy.images=cuda_graph alone"),
        (["policy=oracle", "denoise.steps=3"], "denoise"),
        (["server.api_key_env=NO_KEY_OF_A_TEST"], "server.api_key_env=NO_KEY_OF_A_TEST is not set"),
        (["server.record=/"], "server.record=/ already exists"),
        (["policy=realtime", "policy.device=cpu"], "cannot run here"),
        (
            ["policy=remote", "policy.url=ws://x:1", "policy.label=y"],
            "policy=remote is served already, at policy.url=ws://x:1; give that address to its clients",
        ),
    ],
)
def test_what_would_be_ignored_or_cannot_run_is_refused_before_anything_is_loaded(
    overrides: list[str], says: str
) -> None:
    small = SMALL if not any(text.startswith("policy=") for text in overrides) else ()
    composed_of = [text for text in overrides if not text.startswith("+")]
    with pytest.raises(ValueError, match=says):
        check(composed(*small, *composed_of), overrides)


def test_a_policy_that_reads_the_simulator_is_refused_by_name() -> None:
    config = composed("policy=oracle")
    with pytest.raises(
        ConfigError, match=r"policy=oracle reads poses from the simulator, which no client sends"
    ):
        build(config, make_spec(config.policy))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("server.protocol=grpc", "server.protocol must be one of openpi, vla_eval"),
        ("server.answer=some", "server.answer must be one of chunk, action"),
        ("server.answer=action", "server.answer must be chunk with server.protocol=openpi"),
        ("server.image_sizes=[]", "server.image_sizes must be different sizes"),
        ("server.image_sizes=[224,224]", "server.image_sizes must be different sizes"),
        ("server.max_message_mb=0", "server.max_message_mb must be 1 to 1024"),
        ("server.max_message_mb=1025", "server.max_message_mb must be 1 to 1024, got 1025"),
        ("server.patience_s=1e9", "server.patience_s must be > 0 and at most a day"),
        ("server.max_prompt_tokens=0", "server.max_prompt_tokens must be >= 1"),
        ("server.patience_s=0", "server.patience_s must be > 0"),
        ("port=70000", "port must be 0"),
    ],
)
def test_a_wrong_value_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        composed(override)


def test_two_keys_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="name two keys"):
        composed("server.api_key_env=A", "server.api_key_file=b")


def test_the_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    monkeypatch.setenv("KEY_OF_A_TEST", "other")
    server = composed().server
    assert read_api_key(server) is None
    assert read_api_key(replace(server, api_key_file=str(file))) == "secret"
    assert read_api_key(replace(server, api_key_env="KEY_OF_A_TEST")) == "other"
    with pytest.raises(FileNotFoundError):
        read_api_key(replace(server, api_key_file=str(tmp_path / "none")))
    file.write_text("two\nlines")
    with pytest.raises(ValueError, match=rf"^server.api_key_file={file} must hold a key of printable ASCII"):
        read_api_key(replace(server, api_key_file=str(file)))
    monkeypatch.delenv("KEY_OF_A_TEST")
    with pytest.raises(ValueError, match=r"^server.api_key_env=KEY_OF_A_TEST is not set; export it"):
        read_api_key(replace(server, api_key_env="KEY_OF_A_TEST"))


def test_a_port_in_use_is_refused_before_the_policy_is_built() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot serve on host=127.0.0.1 port={port}: .*; choose another"):
            bind("127.0.0.1", port)


def test_a_server_can_be_started_again_at_once_although_clients_were_connected() -> None:
    clients = ExitStack()
    with serving(EchoPolicy()) as served:
        port = int(served.url.rpartition(":")[2])
        clients.enter_context(served.greeted())
    with clients, serving(EchoPolicy(), port=port) as again, again.greeted():
        assert again.url == served.url


@pytest.mark.parametrize("command", ["config", "serve", "calibrate", "inspect"])
def test_help_names_the_flag_for_yaml_of_ones_own(command: str) -> None:
    assert "--config-dir FOLDER" in OmegaConf.load(CONF / f"{command}.yaml").hydra.help.template


def test_a_policy_without_stages_is_served_as_it_is() -> None:
    config = composed("policy=custom", "policy._target_=tests.eval.serve.served.EchoPolicy")
    spec = make_spec(config.policy)
    policy: Any = build(prepare(config, spec), spec)
    assert not isinstance(policy, Pi05Policy)
    [chunk] = policy.infer([asked(1)])
    assert chunk.actions_HJ.shape == (4, 7)
