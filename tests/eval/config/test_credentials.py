"""What looks like a secret never reaches a record."""

import pytest

from eval.config.compose import check, compose_run
from eval.config.schema import ConfigError


@pytest.mark.parametrize(
    "override",
    [
        "+policy.args.hf_token=abc",
        "+policy.args.api_key=abc",
        "+policy.args.APIKEY=abc",
        "+policy.args.deep.password=abc",
        "+policy.args.list=[{secret:abc}]",
        "+policy.args.x=hf_" + "a" * 34,
        "+policy.args.x=sk-proj-" + "a1" * 20,
        "checkpoint.path=https://user:word@example.com/x",
        "checkpoint.path='https://example.com/x?token=abc'",
        "checkpoint.path='https://example.com/x?part=3&X-Amz-Signature=0f1'",
        "+policy.args.url='wss://example.com/x?api_key=abc'",
        "tracking.group=" + "0123456789" * 4,
        "tracking.tags=[wandb_v1_" + "a" * 40 + "]",
    ],
)
def test_a_secret_is_refused_by_its_key_and_not_shown(override: str) -> None:
    cfg = compose_run(["policy=custom", "policy._target_=a.B", override])
    key, _, value = override.lstrip("+").partition("=")
    with pytest.raises(ConfigError) as refused:
        check(cfg)
    assert str(refused.value).startswith(key)
    assert "HF_TOKEN" in str(refused.value)
    assert value.strip("'") not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "checkpoint.tokenizer=/a/tokenizer.model",
        "checkpoint.path='https://example.com/x?part=3&keys=4'",
        "+policy.args.max_tokens=3",
        "+policy.args.token=null",
        "+policy.args.api_key_env=MY_KEY",
        "+policy.args.commit=" + "0123456789" * 4,
    ],
)
def test_what_only_sounds_alike_is_none(override: str) -> None:
    check(compose_run(["policy=custom", "policy._target_=a.B", override]))
