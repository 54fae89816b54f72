"""What a client and our server both allow: protocols, time limits, keys."""

import os

from policies.remote import openpi, vla_eval

PROTOCOLS = (openpi.NAME, vla_eval.NAME)
MAX_S = 86_400.0  # of a time limit: a day


def read_key(option: str, variable: str | None) -> str | None:
    """Read the key that an environment variable holds; None where no variable is named.

    Args:
        option: names the variable, and stands in messages.

    Raises ValueError where the variable is not set, or holds no key.
    """
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"{option}={variable} is not set; export it, or leave the key out")
    return check_key(key, f"{option}={variable}")


def check_key(key: str, source: str) -> str:
    """Return a key that a header can carry; ValueError, naming its source, for anything else."""
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"{source} must hold a key of printable ASCII; set it again")
    return key
