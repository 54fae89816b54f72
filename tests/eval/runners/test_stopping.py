"""A run that may stop ends with its decision, the same whoever runs it and however often it is resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.sequential import EarlyStop
from eval.episodes.plan import Plan
from eval.records.resume import nothing_left
from eval.runners.ray.schedule import InOrder
from eval.runners.recorder import RunFailed
from tests.eval.fake_run import plan_of, results, run
from tests.eval.fakes import FAULTS

MARGIN = 70.0  # a dozen episodes can show it


@pytest.fixture
def whole(tmp_path: Path) -> dict[Any, Any]:
    return results(run(tmp_path / "whole"))


def stopping(whole: dict[Any, Any]) -> tuple[Plan, EarlyStop]:
    """The plan, and its test against a run that did as well."""
    stop = EarlyStop(plan_of().episodes.keys(), {key: own[0] for key, own in whole.items()}, MARGIN)
    return replace(plan_of(), order=stop.order), stop


def test_it_ends_with_its_decision_after_the_first_episodes_of_the_order(
    tmp_path: Path, whole: dict[Any, Any]
) -> None:
    plan, stop = stopping(whole)
    early = run(tmp_path / "early", plan, stop=stop)
    assert stop.decided
    assert stop.test.pairs < len(whole)
    assert [episode.key for episode in early.episodes] == stop.order[: stop.test.pairs]
    assert results(early) == {key: whole[key] for key in stop.order[: stop.test.pairs]}
    assert early.run["stop"] == stop.to_dict()
    assert early.run["finished"] is True
    assert nothing_left(tmp_path / "early", early.run) is not None


def test_rays_workers_reach_the_same_decision(tmp_path: Path, whole: dict[Any, Any]) -> None:
    alone, stop = stopping(whole)
    run(tmp_path / "local", alone, stop=stop)
    plan, ray_stop = stopping(whole)
    records = results(run(tmp_path / "ray", plan, "ray", stop=ray_stop, workers=2, quiet_episodes=0))
    assert ray_stop.to_dict() == stop.to_dict()
    assert set(stop.order[: stop.test.pairs]) <= records.keys()
    assert all(whole[key] == record for key, record in records.items())


def test_a_run_that_broke_off_goes_on_in_its_order(
    tmp_path: Path, whole: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, stop = stopping(whole)
    run(tmp_path / "whole_way", plan, stop=stop)
    key = stop.order[2]
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / f"raise-{key.task_id}-{key.episode}").touch()
    monkeypatch.setenv(FAULTS, str(faults))
    plan, broken = stopping(whole)
    with pytest.raises(RunFailed):
        run(tmp_path / "early", plan, stop=broken)
    plan, resumed = stopping(whole)
    assert run(tmp_path / "early", plan, stop=resumed).run["stop"] == stop.to_dict()


def test_a_worker_takes_the_first_of_its_scene_among_the_next_few(whole: dict[Any, Any]) -> None:
    order = stopping(whole)[0].order
    assert order is not None
    scenes = {task: f"scene {task}" for task in range(3)}
    waiting = InOrder(order, {1: order[0].task_id}, scenes)
    assert waiting.next(1) == order[0]
    own = next(key for key in order[1:7] if key.task_id == order[0].task_id)
    assert waiting.next(1) == own, "two rounds of three scenes are near"
    assert waiting.next(2) == next(key for key in order[1:] if key != own)
    waiting.put_back(own)
    assert waiting.next(3) == own
    assert len([waiting.next(1) for _ in range(len(waiting))]) == len(order) - 3
    assert waiting.next(1) is None
