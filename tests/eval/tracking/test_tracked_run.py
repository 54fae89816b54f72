"""What a tracker is told of a run: a name and tags that people read, and one id for all processes of it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from eval.app.session import Origin, tracked_run
from eval.config import schema
from eval.config.compose import check
from eval.config.groups import CONF
from eval.records.reader import Run
from eval.records.run_json import read_run_json
from eval.tracking.base import TrackedRun, new_id

RUN_INFO: dict[str, Any] = {
    "config": {"seed": 7},
    "provenance": {"time": "2026-11-28T17:05:33+00:00"},
    "policy": {"device": "NVIDIA H200"},
    "wandb_id": "0123456789abcdef",
}


def described(*overrides: str, earlier: Any = None, weights_label: str | None = None) -> TrackedRun:
    schema.register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = check(compose("config", list(overrides)))
    plan: Any = SimpleNamespace(policy="native_fp8", checkpoint="reference", weights_label=weights_label)
    return tracked_run(Origin({}, [], Path("outputs/x")), config, plan, RUN_INFO, earlier)


def test_a_run_is_named_by_what_it_is_and_when_it_began() -> None:
    run = described("policy=native_fp8", "protocol=full")
    assert run.name == "native_fp8 libero_spatial full reference, 2026-11-28 17:05"
    assert list(run.tags) == ["native_fp8", "libero_spatial", "reference", "NVIDIA H200"]
    assert run.earlier is None


def test_random_weights_and_the_users_own_tags_are_seen() -> None:
    run = described("tracking.tags=[mine]", weights_label="RANDOM WEIGHTS (small)")
    assert run.name.startswith("RANDOM WEIGHTS native_fp8 ")
    assert list(run.tags)[-2:] == ["random weights", "mine"]


def test_a_resumed_run_has_the_id_and_the_records_of_before() -> None:
    before = Run({}, (), ())
    run = described(earlier=SimpleNamespace(run=before))
    assert (run.id, run.earlier) == ("0123456789abcdef", before)
    assert "resumed" in run.tags


def test_ids_are_drawn_anew() -> None:
    assert len({new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize("damage", ["../x", "0123456789ABCDEF", 5])
def test_an_id_in_a_record_is_one_or_the_record_is_damaged(tmp_path: Path, damage: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"wandb_id": damage}))
    with pytest.raises(ValueError, match="wandb_id"):
        read_run_json(tmp_path)
