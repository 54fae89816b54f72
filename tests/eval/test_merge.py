"""Joining parts: every episode once, duplicates said, what does not belong together refused."""

import re
from pathlib import Path

import pytest

from eval.analysis.sequential import EarlyStop
from eval.analysis.summary import summarise
from eval.merge import main, merge
from eval.records.folders import EPISODES_FILE
from eval.records.reader import read_run
from eval.records.resume import Changed
from tests.eval.fake_run import plan_of, results, run
from tests.eval.fakes import FAULTS


def test_two_shards_are_the_whole(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    parts = [tmp_path / f"part{i}" for i in (1, 2)]
    for i, part in enumerate(parts, start=1):
        run(part, plan_of(shard=f"{i}/2"))
    for order in (parts, parts[::-1]):
        out = tmp_path / f"joined{order is parts}"
        assert merge(order, out) == []
        joined = read_run(out)
        assert results(joined) == results(whole)
        assert len(joined.inferences) == len(whole.inferences)
        assert joined.run["planned_episodes"] == 12
        assert joined.run["finished"] is True
        assert joined.run["engagement"] == whole.run["engagement"]
        assert [part["folder"] for part in joined.run["parts"]] == [str(folder) for folder in order]


def test_a_missing_shard_is_missed(tmp_path: Path) -> None:
    run(tmp_path / "part", plan_of(shard="1/3"))
    merge([tmp_path / "part"], tmp_path / "joined")
    assert "4 of 12 planned episodes are recorded" in summarise(read_run(tmp_path / "joined")).warnings


def test_duplicates_count_once_and_are_said(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "part", plan_of(shard="2/3"))
    notes = merge([tmp_path / "part", tmp_path / "whole", tmp_path / "whole"], tmp_path / "joined")
    assert notes == ["12 episodes in several parts, counted once"]
    joined = read_run(tmp_path / "joined")
    assert results(joined) == results(read_run(tmp_path / "whole"))
    assert notes[0] in summarise(joined).warnings


def test_duplicates_that_differ_are_named(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    path = tmp_path / "b" / EPISODES_FILE
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first.replace('"success": true', '"success": false'), *rest]))
    notes = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "joined")
    assert notes[1] == (
        "1 of them with another result in a later part, the first part counts: "
        "libero_spatial-task0-episode0-seed7"
    )
    assert results(read_run(tmp_path / "joined")) == results(read_run(tmp_path / "a"))


def test_all_that_differ_are_named(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    path = tmp_path / "b" / EPISODES_FILE
    swapped = {"true": "false", "false": "true"}
    path.write_text(
        re.sub(r'(?<="success": )(true|false)', lambda match: swapped[match[0]], path.read_text())
    )
    [_, different] = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "joined")
    assert different.startswith("12 of them with another result")
    assert different.count("libero_spatial-task") == 12


def test_one_duplicate_is_one_episode(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, plan_of(shard="1/12"))
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "joined") == [
        "1 episode in several parts, counted once"
    ]


def test_an_error_that_another_part_finished_is_shown_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "raise-1-1").touch()
    monkeypatch.setenv(FAULTS, str(faults))
    run(tmp_path / "a", plan_of(max_errors=1))
    whole = run(tmp_path / "b")
    for order in (("a", "b"), ("b", "a")):
        out = tmp_path / "".join(order)
        merge([tmp_path / name for name in order], out)
        summary = summarise(read_run(out))
        assert results(read_run(out)) == results(whole)
        assert [(error.error_message, error.retried) for error in summary.errors] == [
            ("the renderer gave up", True)
        ]


def test_joined_parts_can_be_joined_again(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        run(tmp_path / f"part{i}", plan_of(shard=f"{i}/3"))
    merge([tmp_path / "part1", tmp_path / "part3"], tmp_path / "some")
    merge([tmp_path / "some", tmp_path / "part2"], tmp_path / "all")
    run(tmp_path / "whole")
    assert results(read_run(tmp_path / "all")) == results(read_run(tmp_path / "whole"))


def test_parts_of_different_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    path = tmp_path / "b" / "run.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    with pytest.raises(Changed, match="seed was 7, is 8"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "joined")]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line == (f"error: {tmp_path}/b has another configuration, policy or simulator: seed was 7, is 8")


def test_a_folder_with_records_is_not_written_to(tmp_path: Path) -> None:
    run(tmp_path / "a")
    with pytest.raises(FileExistsError, match="already holds records"):
        merge([tmp_path / "a"], tmp_path / "a")


def test_the_summary_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a")
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "joined")]) == 0
    out = capsys.readouterr().out
    assert "n = 12 episodes of 12 planned" in out
    assert f"records: {tmp_path}/joined" in out


def test_a_run_that_ends_with_its_own_decision_is_no_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "whole")
    plan = plan_of()
    stop = EarlyStop(plan.episodes.keys(), dict.fromkeys(plan.episodes.keys(), True), 2.0)
    run(tmp_path / "stopping", plan, stop=stop)
    assert main([str(tmp_path / "whole"), str(tmp_path / "stopping"), "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path / 'stopping'} ends with its own decision" in capsys.readouterr().err
