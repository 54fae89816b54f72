"""The checkpoint that ships: its size, its hash, and its answer to one recorded observation."""

import hashlib
import subprocess

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.app.command import CONF
from eval.config.compose import check
from policies.base import Observation, Policy, Request
from policies.files import ROOT
from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.random_weights import TOKENIZER_PATH
from policies.pi05.shipped_before import FOLDER, SHIPPED_BEFORE, how_to_get
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
    assert about["weights_sha256"].startswith("836f5369")
    assert about["norm_stats_sha256"] != "none"


def test_records_of_weights_that_shipped_before_are_told_where_they_are() -> None:
    [(sha256, commit)] = SHIPPED_BEFORE.items()
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        config = check(compose("config", [f"checkpoint.sha256={sha256}"])).checkpoint
    with pytest.raises(ValueError, match=f"other weights.*git archive {commit[:7]} {FOLDER}"):
        load_checkpoint(config)
    blob = subprocess.run(
        ["git", "cat-file", "blob", f"{commit}:{FOLDER}/model.safetensors"], cwd=ROOT, capture_output=True
    )
    if blob.returncode:
        pytest.skip("no history here")
    assert hashlib.sha256(blob.stdout).hexdigest() == sha256
    assert how_to_get(None) == how_to_get("0" * 64) == ""
