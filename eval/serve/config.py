"""conf/serve.yaml: where and how a policy is served."""

from dataclasses import dataclass, field

from eval.config.schema import Config, ConfigError
from policies.files import expand_home
from policies.remote import openpi, vla_eval
from policies.remote.fields import ACTION, CHUNK, MOST_MB, SIDES
from policies.remote.options import MAX_S, PROTOCOLS, check_key, read_key

ANSWERS = (CHUNK, ACTION)
MAX_PORT = 65535
# Keys and groups of a run of episodes, which are not read here.
IGNORED = (
    "suite",
    "protocol",
    "runner",
    "tracking",
    "clock",
    "experiment",
    "video",
    "shard",
    "resume",
    "record_observations",
    "against",
    "stop",
    "margin",
)


@dataclass
class ServerConfig:
    """`server.`: how clients are served; conf/serve.yaml explains each."""

    protocol: str = openpi.NAME
    answer: str = CHUNK
    image_sizes: list[int] = field(default_factory=lambda: [224, 256])
    max_prompt_tokens: int | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None
    max_message_mb: int = 16
    patience_s: float = 30.0
    record: str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"server.protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.answer not in ANSWERS:
            raise ConfigError(f"server.answer must be one of {', '.join(ANSWERS)}, got {self.answer!r}")
        if self.answer == ACTION and self.protocol != vla_eval.NAME:
            raise ConfigError(
                f"server.answer must be chunk with server.protocol={self.protocol}, got {self.answer!r}; "
                "vla_eval alone has clients that take one action an observation"
            )
        sizes = list(self.image_sizes)
        if not sizes or len(set(sizes)) != len(sizes) or not all(size in SIDES for size in sizes):
            raise ConfigError(f"server.image_sizes must be different sizes in pixels, got {sizes}")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ConfigError(f"server.max_prompt_tokens must be >= 1, got {self.max_prompt_tokens}")
        if not 1 <= self.max_message_mb <= MOST_MB:
            raise ConfigError(f"server.max_message_mb must be 1 to {MOST_MB}, got {self.max_message_mb}")
        if not 0 < self.patience_s <= MAX_S:
            raise ConfigError(
                f"server.patience_s must be > 0 and at most a day ({MAX_S:g}), got {self.patience_s}"
            )
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ConfigError("server.api_key_env and server.api_key_file name two keys; give one of them")


@dataclass
class ServeRun(Config):
    """A run's configuration, of which policy, checkpoint, denoise, optim and seed matter here."""

    host: str = "127.0.0.1"
    port: int = 8000
    server: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= MAX_PORT:
            raise ConfigError(f"port must be 0 (any that is free) to {MAX_PORT}, got {self.port}")


def read_api_key(server: ServerConfig) -> str | None:
    """Read the key that clients must give; None where none is asked for.

    Raises ValueError for a variable that is not set and for what is no key, OSError for a file that is not
    there.
    """
    if server.api_key_file is None:
        return read_key("server.api_key_env", server.api_key_env)
    key = expand_home(server.api_key_file).read_text().strip()
    return check_key(key, f"server.api_key_file={server.api_key_file}")
