"""One setting of a bench: floors, parity, shapes and the action that is compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from eval.config.compose import configure
from eval.episodes.clocks import make_clock
from optim.base import Backend, CountedStage, StageContext
from optim.bench.config import read_arguments
from optim.bench.measure import bench_setting
from optim.bench.roofline import Ceiling, floor_ms, work
from optim.core.actions import infer_once
from optim.eager import Eager
from tests.optim.bench.short import SMALL, request
from tests.optim.small import eager_policy, random_checkpoint


@dataclass(frozen=True)
class SaysFp8(Backend):
    """The stage, which claims to be quantised."""

    needs_examples: ClassVar[bool] = False

    def __call__(self, source: StageContext) -> CountedStage:
        return CountedStage("says_fp8", source.stage, details={"precision": "fp8"})


def test_a_floor_is_of_each_stages_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = Ceiling(1e9, {"bfloat16": 1e9, "fp8": 2e9})
    monkeypatch.setattr("optim.bench.measure.find_ceiling", lambda gpu: ceiling)
    words = [*SMALL, "policy.precision=bfloat16", "rounds=1", "bench.warmup=0", "steps=2", "prompt_tokens=20"]
    [setting] = read_arguments(words)
    [row] = setting.rows
    backends = {"vision": SaysFp8(), "prefix": Eager(), "denoise": Eager()}
    requests = [request(i) for i in range(2)]
    record = bench_setting(setting, {row.overrides: backends}, requests, row.config.bench)
    stages = work(random_checkpoint().dims, images=2, prefix_tokens=532, steps=2)
    precisions = {"vision": "fp8", "prefix": "bfloat16", "denoise": "bfloat16"}
    assert record["policies"][0]["floor_ms"] == pytest.approx(
        {name: floor_ms(amount, ceiling, precisions[name]) for name, amount in stages.items()}
    )


def test_parity_is_with_float32_even_where_no_policy_is() -> None:
    words = [*SMALL, "policy.precision=bfloat16", "rounds=1", "bench.warmup=0", "steps=1"]
    [setting] = read_arguments(words)
    [row] = setting.rows
    backends = dict.fromkeys(("vision", "prefix", "denoise"), Eager())
    record = bench_setting(setting, {row.overrides: backends}, [request(0)], row.config.bench)
    assert 0 < record["policies"][0]["parity"]["rel_error"] < 0.02


def test_a_setting_asks_for_views_and_tokens(record: dict[str, Any]) -> None:
    assert record["settings"][0]["policies"][0]["inputs"] == [
        {"images": 2, "image_tokens": 512, "prompt_tokens": tokens} for tokens in (7, 11, 7, 11)
    ]
    [setting] = read_arguments(
        [*SMALL, "views=3", "prompt_tokens=20", "steps=1", "rounds=1", "bench.warmup=0"]
    )
    [row] = setting.rows
    requests = [request(i) for i in range(2)]
    backends = dict.fromkeys(("vision", "prefix", "denoise"), Eager())
    record = bench_setting(setting, {row.overrides: backends}, requests, row.config.bench)
    assert record["policies"][0]["inputs"] == [{"images": 3, "image_tokens": 768, "prompt_tokens": 20}] * 2
    assert record["policies"][0]["parity"]["rel_error"] == 0.0


def test_an_action_for_parity_is_the_one_that_infer_returns() -> None:
    policy = eager_policy(random_checkpoint())
    [chunk] = policy.infer([request(3)])
    actions, _ = infer_once(policy, request(3))
    assert np.array_equal(actions.in_units_HJ, chunk.actions_HJ)
    assert actions.normalised_HA.shape == (10, 32)


def test_guided_stages_are_timed_and_their_row_is_found_by_a_clock(tmp_path: Path) -> None:
    words = [*SMALL, "rounds=2", "bench.warmup=0", "steps=2", "clock=rtc", "clock.latency_ms=0"]
    [setting] = read_arguments(words)
    [row] = setting.rows
    backends = dict.fromkeys(("vision", "prefix", "denoise"), Eager())
    record = bench_setting(setting, {row.overrides: backends}, [request(0)], row.config.bench)
    [policy] = record["policies"]
    assert policy["facts"]["guidance"] == {"beta": 5.0, "jacobian": "identity"}
    assert policy["parity"]["rel_error"] == 0.0  # the reference in float32 is guided too
    (tmp_path / "bench.json").write_text(json.dumps({"settings": [record]}))
    drawn = ["clock=rtc", f"clock.latency_from={tmp_path / 'bench.json'}", "denoise.steps=2", *SMALL]
    latency = make_clock(configure(drawn)).latency
    measured = {sample["infer_ms"] for sample in policy["samples"]}
    assert {latency(request(0).episode, call, 0.0) for call in range(20)} == measured
