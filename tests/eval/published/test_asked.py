"""What a user may choose of a published evaluation, and that a record is of what was asked for."""

import json
from pathlib import Path

import pytest

from eval.published.cli import TABLE_FILES, main
from eval.published.runs import choose_runner
from eval.published.targets import SUITES
from tests.eval.published.conftest import Mirror
from tests.eval.published.fake_runs import LEROBOT, SMALL, Runs, copy, numbers, published


@pytest.mark.parametrize(
    ("differs", "difference"),
    [
        (["suite.name=libero_90"], "suite.name was 'libero_90', is 'libero_10'"),
        (["suite.max_steps=9"], "suite.max_steps was 9, is 520"),
        (
            ["checkpoint.state_in_prompt=false", "checkpoint.state_prompt_dims=null"],
            "checkpoint.state_in_prompt",
        ),
        (["checkpoint.replan_steps=5"], "checkpoint.replan_steps was 5, is 10"),
        (["checkpoint.name=other"], "checkpoint.name was 'other', is 'lerobot_pi05_libero'"),
        (["protocol=quick"], "protocol.episodes was 3, is 50"),
        (["denoise.steps=1"], "denoise.steps was 1, is None"),
    ],
)
def test_a_run_of_something_else_than_was_asked_for_has_no_number(
    tmp_path: Path, differs: list[str], difference: str
) -> None:
    published(tmp_path / "p", SMALL, "--suites", "libero_10", runs=Runs(differs=differs))
    text = (tmp_path / "p" / TABLE_FILES[0]).read_text()
    assert f"- libero_10: {tmp_path / 'p' / 'libero_10'} has another configuration" in text
    assert difference in text
    [suite] = numbers(tmp_path / "p")
    assert suite["here"] is None
    assert "| libero_10 | - | - | 96.0 % |" in text


def test_a_run_that_does_not_say_what_it_evaluated_has_no_number(tmp_path: Path) -> None:
    assert published(tmp_path / "p", SMALL, "--suites", "libero_10", runs=Runs()) == 0
    path = tmp_path / "p" / "libero_10" / "run.json"
    run = json.loads(path.read_text())
    del run["config"]
    path.write_text(json.dumps(run))
    published(tmp_path / "p", SMALL, "--suites", "libero_10", runs=Runs())
    assert "libero_10 does not say what it evaluated" in (tmp_path / "p" / TABLE_FILES[0]).read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("suite=libero_10", "suite=libero_90"),
        ("checkpoint=lerobot_pi05_libero", "checkpoint=lerobot_pi05_libero_base"),
        ("checkpoint.replan_steps=10", "checkpoint.replan_steps=5"),
        ("policy=baseline", "checkpoint.state_in_prompt=false"),
        ("policy=baseline", "checkpoint.state_prompt_dims=8"),
        ("policy=baseline", "policy.name=other"),
    ],
)
def test_a_recorded_job_that_this_command_would_not_give_is_refused(
    tmp_path: Path, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "p"
    assert published(folder, SMALL, "--suites", "libero_10", runs=Runs()) == 0
    path = folder / "sweep.json"
    path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
    runs = Runs()
    assert published(folder, SMALL, "--suites", "libero_goal", runs=runs) == 1
    assert runs.seen == []
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: sweep.json records libero_10 with ")
    assert line.endswith("which is not what was published; give another --folder")


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


@pytest.mark.parametrize(
    "override",
    [
        "suite.name=libero_90",
        "suite.max_steps=9",
        "suite.tasks=[0]",
        "checkpoint.name=other",
        "checkpoint.layout=native",
        "checkpoint.state_in_prompt=false",
        "checkpoint.state_prompt_dims=8",
        "checkpoint.replan_steps=5",
        "checkpoint.norm_mode=mean_std",
        "checkpoint.norm_stats=file.json",
        "checkpoint.suites=[]",
        "denoise.steps=3",
        "denoise=euler",
        "policy.name=other",
        "policy._target_=eval.specs.oracle.OracleSpec",
        "+experiment=oracle_full",
        "suite@checkpoint=libero_10",
        "optim/denoise@optim.vision=eager",
    ],
)
def test_what_was_published_is_not_chosen(
    tmp_path: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    assert published(tmp_path / "p", f"file://{SMALL}", "--suites", "libero_10", override, runs=runs) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert runs.seen == []
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["runner.max_errors=9"],
        ["video=failures", "record_observations=2"],
        ["tracking.project=mine", "tracking=wandb"],
        ["policy.device=cpu", "policy.form=full", "policy.precision=float32"],
        ["optim/denoise=eager"],
        ["seed=8"],
        ["protocol.seeding=openpi"],
    ],
)
def test_how_it_is_computed_may_be_chosen(tmp_path: Path, overrides: list[str]) -> None:
    runs = Runs()
    assert published(tmp_path / "p", SMALL, "--suites", "libero_10", *overrides, runs=runs) == 0
    assert {text.partition("=")[0] for text in overrides} <= set(runs.seen[0])
    assert numbers(tmp_path / "p")[0]["no_comparison"] is None


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
        (["runner=ray", "policy.device=cuda:1"], "policy.device must be auto, cpu or cuda with runner=ray"),
        (["--policy", "oracle"], "policy=oracle has no stages, checkpoint or denoise steps"),
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
