"""One setting of a bench: floors, parity, shapes and the action that is compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from eval.config.compose import configure
from eval.config.schema import ConfigError
from eval.episodes.clocks import make_clock
from optim.base import Backend, CountedStage, StageContext
from optim.bench.config import read_arguments
from optim.bench.measure import batches_of, bench_setting, refuse_batches
from optim.bench.roofline import Ceiling, floor_ms, work
from optim.bench.tables import throughput_rows, title
from optim.core.actions import infer_once, infer_together
from optim.eager import Eager
from optim.fused_denoise import Fused
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


def test_a_batch_has_prompts_of_one_length_and_begins_anew_where_there_are_too_few() -> None:
    requests = [request(i) for i in range(4)]
    assert batches_of(requests, [7, 11, 7, 11], 2) == [[0, 2], [1, 3], [2, 0], [3, 1]]
    assert batches_of(requests, [7, 7, 7, 11], 4) == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2], [3, 3, 3, 3]]
    assert batches_of(requests, [7, 7, 7, 7], 1) == [[0], [1], [2], [3]]


def test_a_batch_that_a_backend_does_not_serve_is_refused() -> None:
    backends: dict[str, Backend] = {"vision": Eager(), "prefix": Eager(), "denoise": Fused()}
    refuse_batches(1, backends)
    words = r"bench.batch must be 1 with optim.denoise=Fused\(.*\), got 4; choose another optim/denoise$"
    with pytest.raises(ConfigError, match=words):
        refuse_batches(4, backends)
    refuse_batches(4, {**backends, "denoise": Eager()})


def test_each_row_of_a_batch_is_the_request_alone() -> None:
    policy = eager_policy(random_checkpoint())
    together, _ = infer_together(policy, [request(0), request(2)])
    for actions, i in zip(together, (0, 2), strict=True):
        alone, _ = infer_once(policy, request(i))
        assert actions.max_abs_action(alone) < 1e-5
    assert together[0].max_abs_action(together[1]) > 0.01


def test_batches_are_timed_beside_single_observations_with_their_throughput(tmp_path: Path) -> None:
    single, double = read_arguments([*SMALL, "batch=1,2", "rounds=2", "bench.warmup=1", "steps=1"])
    requests = [request(i) for i in range(4)]
    backends = dict.fromkeys(("vision", "prefix", "denoise"), Eager())
    records = []
    for setting in (single, double):
        [row] = setting.rows
        records.append(bench_setting(setting, {row.overrides: backends}, requests, row.config.bench))
    assert [record["batch"] for record in records] == [1, 2]
    [policy] = records[1]["policies"]
    assert (policy["parity"]["observations"], policy["engagement"]["denoise"]["calls"]) == (8, 4 + 1 + 2)
    assert policy["parity"]["rel_error"] < 1e-4
    assert (title(records[0]) + ", batch 2") == title(records[1])
    for sample, infer_ms in zip(policy["samples"], (100.0, 300.0), strict=True):
        sample["infer_ms"] = infer_ms
    [(_, batch, n, at_median, over_all)] = throughput_rows(records[1])
    assert (batch, n, at_median, over_all) == ("2", "2", "10.0", "10.0")
    policy["samples"].append({**policy["samples"][0], "infer_ms": 100.0})
    assert next(throughput_rows(records[1]))[2:] == ("3", "20.0", "12.0")
    (tmp_path / "bench.json").write_text(json.dumps({"settings": records}))
    drawn = ["clock=async", f"clock.latency_from={tmp_path / 'bench.json'}", "denoise.steps=1", *SMALL]
    latency = make_clock(configure(drawn)).latency  # of one observation, not of a batch
    alone = {sample["infer_ms"] for sample in records[0]["policies"][0]["samples"]}
    assert {latency(request(0).episode, call, 0.0) for call in range(20)} == alone
