"""Inputs of another number of views and tokens are real ones."""

from dataclasses import replace

import pytest
import torch

from optim.bench.reshape import reshape
from policies.pi05.preprocess import Preprocess
from tests.optim.bench.short import request
from tests.optim.small import eager_policy, random_checkpoint


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return random_checkpoint().preprocess()


def reshaped(preprocess: Preprocess, views: int | None, prompt_tokens: int | None) -> Preprocess:
    policy = eager_policy(random_checkpoint())
    return reshape(replace(policy, preprocess=preprocess), views, prompt_tokens).preprocess


@pytest.mark.parametrize("form", ["lean", "full"])
@pytest.mark.parametrize(("views", "tokens"), [(1, 5), (2, 20), (3, 200)])
def test_reshaped_inputs_are_real_ones_in_turn_without_masks(
    preprocess: Preprocess, form: str, views: int, tokens: int
) -> None:
    observation = request(1).observation
    real = preprocess([observation], "lean")
    inputs = reshaped(preprocess, views, tokens)([observation], form)
    assert (inputs.image_mask_BN, inputs.token_mask_BT) == (None, None)
    assert inputs.images_BNCHW.shape[:2] == (1, views)
    assert inputs.tokens_BT.shape == (1, tokens)
    for i in range(views):
        assert torch.equal(inputs.images_BNCHW[:, i], real.images_BNCHW[:, i % 2])
    prompt = real.tokens_BT[0].tolist()
    assert inputs.tokens_BT[0].tolist() == [prompt[i % len(prompt)] for i in range(tokens)]


@pytest.mark.parametrize("form", ["lean", "full"])
def test_what_is_not_asked_for_stays_as_the_form_has_it(preprocess: Preprocess, form: str) -> None:
    observation = request(0).observation
    plain = preprocess([observation], form)
    views_alone = reshaped(preprocess, 2, None)([observation], form)
    tokens_alone = reshaped(preprocess, None, 8)([observation], form)
    assert torch.equal(views_alone.tokens_BT, plain.tokens_BT)
    assert (views_alone.token_mask_BT is None) == (form == "lean")
    assert torch.equal(tokens_alone.images_BNCHW, plain.images_BNCHW)
    assert (tokens_alone.image_mask_BN is None) == (form == "lean")
