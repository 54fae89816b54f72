"""`python -m eval.published` with jobs that are faked: what it fetches, runs, resumes, refuses and prints."""

import json
from pathlib import Path

import pytest

from eval.published.cli import TABLE_FILES, main
from eval.published.runs import choose_runner
from eval.published.targets import OFFICIAL_EPISODES, SUITES, TARGETS
from policies.files import ROOT
from tests.eval.published.conftest import Mirror
from tests.eval.sweep.sweeps import parse, sweep_file
from tests.eval.written_runs import write_run

LEROBOT, OPENPI = "lerobot_pi05_libero_finetuned", "openpi_pi05_libero"
SMALL = ROOT / "tests" / "parity" / "lerobot_small"


class Runs:
    """Runs no process: writes a run of the job's suite; some are `broken` or `interrupted`.

    Args:
        failures: of the episodes of each suite.
        differs: overrides of what is evaluated in truth.
    """

    def __init__(
        self, broken: str = "none", interrupted: str = "none", failures: int = 0, differs: Sequence[str] = ()
    ) -> None:
        self.seen: list[dict[str, str]] = []
        self._broken, self._interrupted, self._failures = broken, interrupted, failures
        self._differs = differs

    def __call__(self, arguments: list[str], log: Path) -> int:
        chosen = parse(arguments)
        self.seen.append(chosen)
        if "resume" in chosen:
            self._write(Path(chosen["resume"]), Path(chosen["resume"]).name, self._config)
            return 0
        suite, folder = chosen["suite"], Path(chosen["hydra.run.dir"])
        if suite == self._broken:
            with log.open("a") as file:
                file.write("error: no memory\n")
            return 1
        config = recorded_config([*arguments, *self._differs])
        if suite == self._interrupted:
            run = {"finished": False, "planned_episodes": OFFICIAL_EPISODES, "config": config}
            write_run(folder, count=20, suite=suite, run=run, checkpoint=config["checkpoint"]["name"])
            raise KeyboardInterrupt
        self._write(folder, config)
        return 0

    def _write(self, folder: Path, config: Mapping[str, Any]) -> None:
        checkpoint = config["checkpoint"]["name"]
        suite, failures = config["suite"]["name"], range(self._failures)
        run = {"config": config}
        write_run(folder, count=OFFICIAL_EPISODES, suite=suite, failures=failures, run=run, checkpoint=checkpoint)

    @property
    def suites(self) -> list[str]:
        return [chosen["suite"] for chosen in self.seen]


def published(folder: Path, source: str | Path, *arguments: str, runs: Runs, target: str = LEROBOT) -> int:
    """Run the command on a machine that can run every job."""
    where = ["--folder", str(folder), "--source", str(source), "tracking=none", "runner=local"]
    return main([target, *where, *arguments], runs, lambda jobs: [None] * len(jobs))


def copy(mirror: Mirror) -> str:
    """A copy of lerobot's folder in memory, with files that nobody wants."""
    files = {path.name: path.read_bytes() for path in SMALL.iterdir()}
    return mirror({**files, "README.md": b"#"})


def numbers(folder: Path) -> list[dict[str, object]]:
    suites: list[dict[str, object]] = json.loads((folder / TABLE_FILES[1]).read_text())["suites"]
    return suites


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
    assert "the same command goes on with it" in capsys.readouterr().err
    assert "libero_goal: not run yet" in (folder / TABLE_FILES[0]).read_text()
    rest = Runs()
    assert published(folder, url, runs=rest) == 0
    assert rest.seen[0] == {"resume": str(folder / "libero_object")}
    assert [chosen["suite"] for chosen in rest.seen[1:]] == ["libero_goal", "libero_10"]


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


def test_a_run_that_has_begun_keeps_its_settings(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder, runs = copy(mirror), tmp_path / "p", Runs()
    assert published(folder, url, runs=Runs()) == 0
    assert published(folder, url, "--policy", "realtime", runs=runs) == 1
    assert runs.seen == []
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder / SUITES[0]} was begun with other settings (policy=baseline, policy=realtime)" in line
    assert "give another --folder" in line


def test_suites_are_chosen_and_added_to(mirror: Mirror, tmp_path: Path) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    first, second = Runs(), Runs()
    assert published(folder, url, "--suites", "libero_10,libero_object", runs=first) == 0
    assert first.suites == ["libero_object", "libero_10"]
    assert published(folder, url, "--suites", "libero_goal", runs=second) == 0
    assert second.suites == ["libero_goal"]
    assert [suite["suite"] for suite in numbers(folder)] == ["libero_object", "libero_goal", "libero_10"]
    assert "all four" not in (folder / TABLE_FILES[0]).read_text()


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
    config = json.loads((SMALL / "config.json").read_text())
    steps = json.loads((SMALL / "policy_preprocessor.json").read_text())
    steps["steps"] = [s for s in steps["steps"] if s["registry_name"] != "relative_actions_processor"]
    del config["use_relative_actions"], config["relative_exclude_joints"]
    mirror({"config.json": json.dumps(config).encode()})
    mirror({"policy_preprocessor.json": json.dumps(steps).encode()})
    runs, chosen = Runs(), Runs()
    assert published(tmp_path / "p", url, "--suites", "libero_10", runs=runs) == 0
    assert runs.seen[0]["checkpoint.state_prompt_dims"] == "32"
    more = ["--suites", "libero_10", "checkpoint.state_prompt_dims=8"]
    assert published(tmp_path / "q", url, *more, runs=chosen) == 0
    assert chosen.seen[0]["checkpoint.state_prompt_dims"] == "8"


def test_few_episodes_are_no_reproduction_and_a_gap_is_named(mirror: Mirror, tmp_path: Path) -> None:
    url, folder = copy(mirror), tmp_path / "p"
    assert published(folder, url, "--suites", "libero_10", runs=Runs(failures=100)) == 0
    assert (
        "- libero_10: our interval and that of lerobot do not overlap"
        in (folder / TABLE_FILES[0]).read_text()
    )
    published(tmp_path / "q", url, "--suites", "libero_10", runs=Runs(interrupted="libero_10"))
    text = (tmp_path / "q" / TABLE_FILES[0]).read_text()
    assert "- libero_10: 5 episodes, not the official 500: not comparable" in text
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


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["suite=libero_10"], "suite is chosen by --suites"),
        (["policy=realtime"], "policy is chosen by --policy"),
        (["checkpoint.path=here"], "checkpoint.path is chosen by --source"),
        (["resume=here"], "resume is chosen by the same command again"),
        (["hydra.run.dir=here"], "its folder is --folder"),
        (["seed=1,2"], "seed=1,2 must be one value"),
        (["protcol=smoke"], "unknown key protcol; did you mean protocol?"),
        (["denoise.steps=0"], "denoise.steps must be >= 1, got 0"),
        (["--tokenizer", "nothing.model"], "--tokenizer: no file 'nothing.model'"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_fetched(
    tmp_path: Path, arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    assert published(tmp_path / "p", f"file://{SMALL}", *arguments, runs=runs) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert error in line
    assert runs.seen == []
    assert not (tmp_path / "p" / "source").exists()


def test_a_suite_that_nobody_published_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([LEROBOT, "--suites", "libero_90"])
    assert "must be of libero_spatial, libero_object, libero_goal, libero_10, got libero_90" in (
        capsys.readouterr().err
    )


def test_a_runner_of_the_command_line_is_the_only_one() -> None:
    assert choose_runner(["runner=ray", "runner.workers=3"]) == []
    assert choose_runner(["seed=1"])[0] in ("runner=local", "runner=ray")
