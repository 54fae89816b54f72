"""What a user types is read as it stands: text as text, `~` as the home."""

from collections.abc import Callable
from pathlib import Path

import pytest

from eval.config.compose import configure
from eval.config.schema import ConfigError
from eval.config.typed import keep_text, refuse_empty
from eval.records.run_json import read_run_json
from eval.runners.local import LocalRunner


@pytest.mark.parametrize(
    ("typed", "key", "text"),
    [
        ("tracking.group=1e5", "tracking.group", "1e5"),
        ("tracking.group=2026_11", "tracking.group", "2026_11"),
        ("tracking.group=true", "tracking.group", "true"),
        ("tracking.group='1e5'", "tracking.group", "1e5"),
        ("tracking.project=1.50", "tracking.project", "1.50"),
        ("policy.name=.5", "policy.name", ".5"),
        ("policy.name=it's (a=b) #1; é", "policy.name", "it's (a=b) #1; é"),
        ("checkpoint.name=1e5", "checkpoint.name", "1e5"),
        ("checkpoint.tokenizer=~/a=b", "checkpoint.tokenizer", "~/a=b"),
        ("optim.scales=nan", "optim.scales", "nan"),
        ("++tracking.group=007e1", "tracking.group", "007e1"),
    ],
)
def test_text_stays_text(typed: str, key: str, text: str) -> None:
    value = configure([typed])
    for name in key.split("."):
        value = getattr(value, name)
    assert value == text


def test_each_text_of_a_list_stays_text() -> None:
    config = configure(["tracking.tags=[1e5, a b,true,'x,y',a\\,b]"])
    assert config.tracking.tags == ["1e5", "a b", "true", "x,y", "a,b"]


def test_a_policys_own_options_are_text_too() -> None:
    remote = configure(["policy=remote", "policy.url=ws://x", "policy.label=1e5"])
    assert vars(remote.policy)["label"] == "1e5"


@pytest.mark.parametrize(
    "typed",
    [
        "tracking.group=null",
        "tracking.group=${seed}",
        "tracking.group=choice(a,b)",
        "tracking.group='a','b'",
        "tracking.group=a,b",
        "tracking.tags=[]",
        "seed=1e5",
        "policy.args.size=1e5",
        "policy=1e5",
        "--config-dir",
    ],
)
def test_all_else_is_left_to_hydra(typed: str) -> None:
    assert keep_text([typed]) == [typed]


def test_each_value_of_a_sweep_stays_text() -> None:
    assert keep_text(["tracking.group=1e5,a,2"]) == ["tracking.group='1e5',a,'2'"]


def test_each_choice_of_a_sweep_is_a_name() -> None:
    refuse_empty(["suite=libero_goal,libero_10", "+experiment=[ablation,oracle_full]", "policy.args.size=3"])
    with pytest.raises(ConfigError, match=r"^suite must be one of libero_10, .*, got libero_goal,3$"):
        refuse_empty(["suite=libero_goal,3"])


def test_the_home_is_meant_where_hydra_makes_the_folder(
    command_line: Callable[..., None], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalRunner, "run", lambda runner, plan, books: None)
    command_line("policy=oracle", "tracking.group=1e5", "tracking=none", "hydra.run.dir=~/a = 'b'")
    run = read_run_json(home / "a = 'b'")
    assert run["config"]["tracking"]["group"] == "1e5"
    assert "tracking.group='1e5'" in run["overrides"]
