"""What looks like a token or a password: it would be kept in run.json, in the process list and in W&B."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eval.config.schema import ConfigError

# The prefixes are those of their makers: Hugging Face, OpenAI and Anthropic, GitHub, W&B, AWS, Google, Slack.
VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|wandb_v\d_\w{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,})"
    r"|://[^/\s:@]+:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY"
)
NAMES = r"(?:token|password|passwd|secret|api_?key|access_?key|private_?key|credentials?)"
NAME = re.compile(rf"(?:.*_)?{NAMES}", re.IGNORECASE)
# in what follows the ? of an address, where names are freer: ?key=, ?sig= of Azure, ?X-Amz-Signature=
QUERY = re.compile(rf"://\S*[?&;][\w.-]*(?:{NAMES}|key|auth|sig|signature)=[^&;\s]", re.IGNORECASE)
OLD_WANDB_KEY = re.compile(r"[0-9a-f]{40}")  # a commit looks the same, but not below tracking


def refuse_credentials(cfg: DictConfig) -> None:
    """Refuse a configuration that holds what looks like a secret; ConfigError names the key alone."""
    for key, text in _texts(OmegaConf.to_container(cfg, resolve=True), ""):
        named = NAME.fullmatch(re.split(r"[.\[]", key)[-1])
        is_wandb_key = key.startswith("tracking.") and OLD_WANDB_KEY.fullmatch(text)
        if text and (named or is_wandb_key or VALUE.search(text) or QUERY.search(text)):
            raise ConfigError(
                f"{key} looks like a token or a password, which run.json would keep; leave it out, put it "
                "into an environment variable (HF_TOKEN, WANDB_API_KEY, one of your own) and read it there"
            )


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, f"{where}[{i}]")
    elif isinstance(value, str):
        yield where, value
