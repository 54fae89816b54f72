"""The error of a wrong value, and the checks that raise it."""


class ConfigError(ValueError):
    """A value that the configuration does not allow; the message names key, value and way out."""


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError for a value that is none of them."""
    if value not in allowed:
        raise ConfigError(f"{key} must be one of {', '.join(allowed)}, got {value!r}")


def at_least(key: str, value: float | None, least: int) -> None:
    """Raise ConfigError for a number below the least; None is no number."""
    if value is not None and value < least:
        raise ConfigError(f"{key} must be >= {least}, got {value}")
