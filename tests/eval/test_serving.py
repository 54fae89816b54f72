"""The reference checkpoint in batches: the same actions but for rounding, and only of one shape."""

from collections.abc import Iterator

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.cli import check
from eval.command import CONF
from eval.schema import register
from eval.serving import build_served_policy
from policies.base import EpisodeKey, Observation, Request

SHORT, LONG = "pick up the black bowl", "pick up the black bowl next to the ramekin and place it on the plate"


@pytest.fixture
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        yield


@pytest.mark.usefixtures("hydra")
def test_batched_actions_are_those_of_requests_served_alone() -> None:
    arguments = ["runner=ray", "runner.max_batch=4", "policy.device=cpu", "policy.precision=float32"]
    policy, batching = build_served_policy(check(compose("config", arguments)), [0])
    rng = np.random.default_rng(0)
    requests = [
        Request(
            Observation(
                {name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in policy.cameras},
                np.zeros(8),
                instruction,
            ),
            EpisodeKey("libero_spatial", 0, episode, 7),
            0,
        )
        for episode, instruction in enumerate([LONG, SHORT, LONG, SHORT, LONG])
    ]
    assert batching.sizes is None  # eager stages take any number
    batches = list(batching.split(requests, lambda request: request))
    assert [[request.episode.episode for request in batch] for batch in batches] == [[0, 2, 4], [1, 3]]
    for batch in batches:
        for request, chunk in zip(batch, policy.infer(batch), strict=True):
            [alone] = policy.infer([request])
            np.testing.assert_allclose(chunk.actions_HJ, alone.actions_HJ, atol=1e-4)
