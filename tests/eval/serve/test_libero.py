"""Episodes of LIBERO itself: a served policy acts in them as the policy itself does, to the bit."""

from pathlib import Path

import pytest

from eval.api import Evaluation, evaluate, load_policy
from tests.eval.serve.served import serving

SMALL = ("checkpoint=random_small", "policy.device=cpu", "denoise.steps=1")
SHORT = ("suite.tasks=[3]", "protocol.episodes=2", "suite.max_steps=11")

pytestmark = pytest.mark.sim


def results(run: Evaluation) -> list[tuple[object, ...]]:
    return [
        (e.key, e.outcome, e.steps, e.actions_sha256, e.initial_state_sha256, e.checkpoint_sha256)
        for e in run.records.episodes
    ]


def test_episodes_of_a_served_policy_are_those_of_the_policy_itself(tmp_path: Path) -> None:
    policy = load_policy("baseline", *SMALL)
    own = evaluate(policy, *SHORT, folder=tmp_path / "own", progress=False)
    assert [e.inferences for e in own.records.episodes] == [3, 3]
    assert own.success.errors == 0
    with serving(policy.policy) as served:
        keys = (f"policy.url={served.url}", "policy.label=small")
        through = evaluate("remote", *keys, *SHORT, folder=tmp_path / "through", progress=False)
    assert results(through) == results(own)
