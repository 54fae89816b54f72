"""A short bench of the small network: sizes and observations."""

from policies.base import Request
from tests.optim.small import random_request

OBSERVATIONS, ROUNDS, WARMUP = 4, 5, 2
SMALL = ("checkpoint=random_small", "policy.device=cpu")


def request(i: int) -> Request:
    return random_request(i, "pick up the black bowl" + " next to the plate" * (i % 2))
