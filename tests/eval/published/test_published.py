"""`python -m eval.published` with jobs that are faked: what it fetches, runs, resumes, refuses and prints."""

import json
from pathlib import Path

import pytest

from eval.published.cli import TABLE_FILES
from eval.published.targets import SUITES, TARGETS
from tests.eval.published.conftest import Mirror
from tests.eval.published.fake_runs import LEROBOT, OPENPI, SMALL, Runs, copy, numbers, published
from tests.eval.sweep.sweeps import copy_without_version, sweep_file


def test_published_percentages_are_whole_episodes() -> None:
    for target in TARGETS.values():
        for other in target.published:
            assert tuple(other.percent) == SUITES
            for suite, percent in other.percent.items():
                assert 100 * other.successes(suite) / other.episodes == pytest.approx(percent, abs=1e-9)


def test_a_copy_is_fetched_evaluated_and_set_beside_the_published_numbers(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, folder = Runs(failures=10), tmp_path / "p"
    assert published(folder, copy(mirror), runs=runs) == 0
    assert runs.suites == list(SUITES)
    fetched = folder / "source"
    for chosen in runs.seen:
        assert chosen["protocol"] == "official"
        assert (chosen["policy"], chosen["checkpoint"]) == ("baseline", "lerobot_pi05_libero")
        assert chosen["checkpoint.path"] == str(fetched)
        assert chosen["checkpoint.replan_steps"] == "10"
        assert "checkpoint.tokenizer" not in chosen  # the folder has one
        assert "checkpoint.state_prompt_dims" not in chosen  # the folder says it
    assert (fetched / "model.safetensors").read_bytes() == (SMALL / "model.safetensors").read_bytes()
    assert not (fetched / "README.md").exists()
    captured = capsys.readouterr()
    assert f"8 files, 4.4 MB to fetch into {folder} (" in captured.err
    assert "memory://mirror publishes no hash of 8 files (config.json, " in captured.err
    assert "490 / 500 = 98.0 %" in captured.out
    text = (folder / TABLE_FILES[0]).read_text()
    assert "| libero_10 | 490 / 500 = 98.0 % | 96.4 to 98.9 % | 96.0 % | 90.2 to 98.4 % |" in text
    assert "| all four | 1960 / 2000 = 98.0 % | 97.3 to 98.5 % | 97.5 % | 95.5 to 98.6 % |" in text
    spatial = numbers(folder)[0]
    assert spatial["here"] == pytest.approx(
        {"successes": 490, "finished": 500, "errors": 0, "rate": 0.98, "low": 0.9636, "high": 0.9891},
        abs=1e-4,
    )
    assert spatial["published"] == [
        pytest.approx(
            {"by": "lerobot", "episodes": 100, "rate": 0.97, "low": 0.9155, "high": 0.9897}, abs=1e-4
        )
    ]


def test_the_same_command_again_fetches_and_runs_nothing(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, again = copy(mirror), Runs()
    assert published(tmp_path / "p", url, runs=Runs()) == 0
    capsys.readouterr()
    assert published(tmp_path / "p", url, runs=again) == 0
    assert again.seen == []
    said = capsys.readouterr().err
    assert "0 files, 0 B to fetch" in said
    assert said.count("finished before") == len(SUITES)


def test_an_interrupted_suite_is_resumed_and_the_next_ones_run(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    assert published(folder, url, runs=Runs(interrupted="libero_object")) == 130
    assert "interrupted; the same command goes on with it" in capsys.readouterr().err
    assert "libero_goal: not run yet" in (folder / TABLE_FILES[0]).read_text()
    rest = Runs()
    assert published(folder, url, runs=rest) == 0
    assert rest.seen[0] == {"resume": str(folder / "libero_object")}
    assert [chosen["suite"] for chosen in rest.seen[1:]] == ["libero_goal", "libero_10"]


def test_an_interrupted_suite_goes_on_with_the_runner_of_the_new_command_line(
    mirror: Mirror, tmp_path: Path
) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    assert published(folder, url, runs=Runs(interrupted="libero_object")) == 130
    rest = Runs()
    more = ["runner=ray", "runner.workers=2", "runner.max_errors=9", "video=failures"]
    assert published(folder, url, *more, runs=rest) == 0
    assert rest.seen[0] == {
        "resume": str(folder / "libero_object"),
        "runner.name": "ray",
        "runner.workers": "2",
        "runner.max_errors": "9",
        "runner.episode_timeout_s": "900.0",
        "video": "failures",
    }
    recorded = {job["folder"]: job["overrides"] for job in sweep_file(folder)}
    assert "runner=ray" not in recorded["libero_spatial"]  # it had finished
    for suite in ("libero_object", "libero_goal", "libero_10"):
        assert set(more) <= set(recorded[suite])


def test_unfinished_suites_have_no_verdict_and_no_sum(mirror: Mirror, tmp_path: Path) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    assert published(folder, url, runs=Runs(interrupted="libero_10", failures=100)) == 130
    text = (folder / TABLE_FILES[0]).read_text()
    assert "| libero_10 | 20 / 20, not complete | - | 96.0 % | 90.2 to 98.4 % |" in text
    assert "- libero_10: no comparison: 20 of the official 500 episodes finished" in text
    assert "- libero_goal: our interval and that of lerobot do not overlap" in text
    assert "libero_10: our interval" not in text
    assert "| all four |" not in text
    assert "- all four: no sum: libero_10 is missing or not complete" in text
    assert [suite["no_comparison"] for suite in numbers(folder)] == [
        *[None] * 3,
        "20 of the official 500 episodes finished",
    ]
    assert published(folder, url, runs=Runs()) == 0
    text = (folder / TABLE_FILES[0]).read_text()
    assert "no comparison" not in text
    assert "| all four | 1700 / 2000 = 85.0 % |" in text


def test_suites_with_different_policies_are_not_summed(mirror: Mirror, tmp_path: Path) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    assert published(folder, url, "--suites", "libero_spatial,libero_goal,libero_10", runs=Runs()) == 0
    write_other = Runs()
    assert published(folder, url, "--suites", "libero_object", "policy.form=full", runs=write_other) == 0
    path = folder / "libero_object" / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "policy": {**run["policy"], "form": "full"}}))
    assert published(folder, url, "--suites", "libero_object", "policy.form=full", runs=Runs()) == 0
    text = (folder / TABLE_FILES[0]).read_text()
    assert "| all four |" not in text
    assert "- all four: no sum: the suites ran with different policies, devices or weights" in text


def test_a_failed_suite_stops_no_other_and_may_be_tried_with_other_settings(
    mirror: Mirror, tmp_path: Path
) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    assert published(folder, url, runs=Runs(broken="libero_goal")) == 1
    assert [job["status"] for job in sweep_file(folder)] == [0, 0, 1, 0]
    assert "- libero_goal: exit status 1: no memory" in (folder / TABLE_FILES[0]).read_text()
    rest = Runs()
    assert published(folder, url, "--suites", "libero_goal", "policy.device=cpu", runs=rest) == 0
    assert [chosen["policy.device"] for chosen in rest.seen] == ["cpu"]


def test_suites_are_chosen_and_added_to(mirror: Mirror, tmp_path: Path) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    first, second = Runs(), Runs()
    assert published(folder, url, "--suites", "libero_10,libero_object", runs=first) == 0
    assert first.suites == ["libero_object", "libero_10"]
    assert published(folder, url, "--suites", "libero_goal", runs=second) == 0
    assert second.suites == ["libero_goal"]
    assert [suite["suite"] for suite in numbers(folder)] == ["libero_object", "libero_goal", "libero_10"]
    assert "| all four |" not in (folder / TABLE_FILES[0]).read_text()


def test_a_folder_on_this_machine_is_used_where_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    assert published(tmp_path / "p", SMALL, "--suites", "libero_10", runs=runs) == 0
    assert runs.seen[0]["checkpoint.path"] == str(SMALL)
    assert "0 files, 0 B to fetch" in capsys.readouterr().err


def test_a_folder_that_does_not_tell_its_version_is_of_the_one_that_published_it(
    mirror: Mirror, tmp_path: Path
) -> None:
    url = copy(mirror)
    folder = copy_without_version(tmp_path / "copy")
    mirror({path.name: path.read_bytes() for path in folder.glob("*.json")})
    runs = Runs()
    assert published(tmp_path / "p", url, "--suites", "libero_10", runs=runs) == 0
    assert runs.seen[0]["checkpoint.state_prompt_dims"] == "32"
    assert published(tmp_path / "p", url, "--suites", "libero_10,libero_goal", runs=Runs()) == 0


def test_few_episodes_are_no_reproduction_and_a_gap_is_named(mirror: Mirror, tmp_path: Path) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    assert published(folder, url, "--suites", "libero_10", runs=Runs(failures=100)) == 0
    assert (
        "- libero_10: our interval and that of lerobot do not overlap"
        in (folder / TABLE_FILES[0]).read_text()
    )
    arguments = ["--suites", "libero_10", "protocol=quick"]
    assert published(tmp_path / "q", url, *arguments, runs=Runs(episodes=9)) == 0
    text = (tmp_path / "q" / TABLE_FILES[0]).read_text()
    assert "- libero_10: no comparison: 9 episodes planned, not the official 500" in text
    assert "| libero_10 | 9 / 9, not complete | - |" in text
    assert "overlap" not in text


@pytest.mark.parametrize("target", [OPENPI, LEROBOT])
def test_without_a_source_one_line_says_what_is_needed_and_how_much(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    assert published(tmp_path / "p", "memory://nowhere", runs=runs, target=target) == 1
    [line] = capsys.readouterr().err.splitlines()
    about = {OPENPI: "needs 13.4 GB", LEROBOT: "needs 7 GB (bfloat16) to 15 GB (float32)"}[target]
    assert line.startswith(f"error: {target} {about}")
    assert f"from {TARGETS[target].url}, and PaliGemma's tokenizer (4.3 MB), but memory://nowhere" in line
    assert "give --source FOLDER_OR_URL with a copy and --tokenizer FILE" in line
    assert runs.seen == []
    assert not (tmp_path / "p").exists()
