"""The run that another is run against: it has every episode, and the pairs mean something."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.app.stopping import open_stop
from eval.config.compose import configure
from eval.config.schema import Config, ConfigError
from eval.episodes.plan import Plan
from eval.records.episodes import Episodes
from eval.records.resume import Changed
from tests.eval.fake_run import plan_of

WriteRun = Callable[..., Path]


def config_of(folder: Path, *more: str) -> Config:
    return configure(["policy=oracle", f"against={folder}", "stop=decided", *more])


@pytest.fixture
def plan() -> Plan:
    """Of three tasks with two episodes, on the weights of `write_run`."""
    return replace(
        plan_of(), checkpoint_sha256="c" * 64, episodes=Episodes("libero_spatial", (0, 1, 2), 0, 2, 7)
    )


def test_a_run_that_has_every_episode_is_read(write_run: WriteRun, plan: Plan) -> None:
    base = write_run("base", count=20, failures=[1])
    stop = open_stop(config_of(base, "margin=5"), plan, None)
    assert stop is not None
    assert (stop.test.margin_points, len(stop.order)) == (5.0, 6)
    assert open_stop(configure(["policy=oracle"]), plan, None) is None


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"count": 11}, "must have finished every episode of this run: no outcome of libero"),
        (
            {"errors": [2]},
            "must have finished every episode of this run: no outcome of libero_spatial-task2-ep",
        ),
        ({"seeding": "openpi"}, "must have the same seeding, got openpi and paired"),
        (
            {"checkpoint_sha256": "d" * 64},
            f"must have the same checkpoint_sha256, got {'d' * 64} and {'c' * 64}",
        ),
        (
            {"run": {"config": {"suite": {"max_steps": 9}}}},
            "must have the same suite.max_steps, got 9 and 220",
        ),
        ({"run": {"instructions": "bddl"}}, "must have the same instructions, got bddl and filename"),
    ],
)
def test_a_run_that_cannot_be_paired_is_refused(
    write_run: WriteRun, plan: Plan, written: dict[str, Any], words: str
) -> None:
    base = write_run("base", **{"count": 20, **written})
    with pytest.raises(ConfigError, match=re.escape(f"against={base} {words}")):
        open_stop(config_of(base), plan, None)


def test_a_base_that_changed_since_the_run_was_begun_is_refused(write_run: WriteRun, plan: Plan) -> None:
    base = config_of(write_run("base", count=20))
    stop = open_stop(base, plan, None)
    assert stop is not None
    assert open_stop(base, plan, {"stop": stop.to_dict()}) is not None
    changed = config_of(write_run("changed", count=20, failures=[0]))
    with pytest.raises(Changed, match="has other outcomes than when this run was begun"):
        open_stop(changed, plan, {"stop": stop.to_dict()})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stop=decided"], "stop=decided and against=RUN need each other, got stop=decided, against=None"),
        (["against=run"], "stop=decided and against=RUN need each other, got stop=None, against=run"),
        (["against=run", "stop=soon"], "stop must be one of decided, got 'soon'"),
        (["against=run", "stop=decided", "margin=0"], "margin must be points of success between 0 and 100"),
        (["margin=2"], "margin must be points of success between 0 and 100 that stop=decided may lose"),
        (
            ["against=run", "stop=decided", "shard=1/2"],
            "shard must be null with stop=decided, whose order of episodes no part can follow, got 1/2",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        configure(["policy=oracle", *overrides])
