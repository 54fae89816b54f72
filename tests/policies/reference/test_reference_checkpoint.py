"""The checkpoint that ships: its size, its hash, and its answer to one recorded observation."""

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from policies.base import Observation, Policy, Request
from policies.pi05.random_weights import TOKENIZER_PATH
from tests.policies.reference.record_golden import GOLDEN
from tests.policies.reference.shipped import KEY, shipped_policy

# float32 sums in another order (another CPU, thread count or torch); the action range is -1 to 1
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def policy() -> Policy:
    GlobalHydra.instance().clear()
    return shipped_policy()


def test_the_recorded_observation_gives_the_recorded_action_chunk(policy: Policy) -> None:
    with np.load(GOLDEN) as golden:
        images = {name: golden[name] for name in policy.cameras}
        observation = Observation(images, golden["state"], str(golden["instruction"]))
        expected = golden["actions"]
    [chunk] = policy.infer([Request(observation, KEY, 0)])
    assert chunk.actions_HJ.shape == (10, 7)
    np.testing.assert_allclose(chunk.actions_HJ, expected, rtol=0, atol=TOLERANCE)
    [other] = policy.infer([Request(observation, KEY, 1)])
    assert np.abs(other.actions_HJ - expected).max() > TOLERANCE  # other noise: the golden is no constant


def test_the_answer_depends_on_what_is_seen_and_asked(policy: Policy) -> None:
    with np.load(GOLDEN) as golden:
        images = {name: golden[name] for name in policy.cameras}
        state, instruction, expected = golden["state"], str(golden["instruction"]), golden["actions"]
    black = {name: np.zeros_like(image) for name, image in images.items()}
    elsewhere = instruction.replace("in the top drawer of", "on")
    assert elsewhere != instruction
    for observation in (Observation(black, state, instruction), Observation(images, state, elsewhere)):
        [chunk] = policy.infer([Request(observation, KEY, 0)])
        assert np.abs(chunk.actions_HJ - expected).max() > 0.05


def test_weights_are_small_enough_for_plain_git_and_labelled_by_their_hash(policy: Policy) -> None:
    weights = TOKENIZER_PATH.with_name("model.safetensors")
    assert weights.stat().st_size <= 24_000_000
    about = policy.provenance()
    assert about["checkpoint"] == "reference"
    assert about["weights_sha256"].startswith("3862cc12")
    assert about["norm_stats_sha256"] != "none"
