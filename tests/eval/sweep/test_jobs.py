"""The jobs of a sweep: lists multiply, and bad ones are refused at once."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from eval.config.groups import CONF
from eval.config.multiply import swept_words
from eval.config.schema import ConfigError
from eval.sweep.jobs import experiments, read_jobs
from policies.files import ROOT
from tests.eval.sweep.sweeps import Jobs, sweep


def test_the_denoise_sweep_is_policies_by_steps_and_begins_with_the_baseline() -> None:
    jobs = read_jobs(["+experiment=denoise_sweep"])
    assert len(jobs) == 20
    assert [job.folder for job in jobs[:2]] == ["0_baseline_steps10", "1_baseline_steps5"]
    assert jobs[19].overrides == ("+experiment=denoise_sweep", "policy=realtime", "denoise.steps=1")


def test_the_ablation_changes_one_stage_at_a_time_and_then_all() -> None:
    jobs = read_jobs(["+experiment=ablation", "protocol=smoke"], one_at_a_time=True)
    changed = [[text for text in job.swept if not text.endswith("eager")] for job in jobs]
    assert changed == [
        [],
        ["optim/vision=fp8"],
        ["optim/prefix=fp8"],
        ["optim/denoise=compile"],
        ["optim/vision=fp8", "optim/prefix=fp8", "optim/denoise=compile"],
    ]
    assert all("protocol=smoke" in job.overrides for job in jobs)
    assert len(read_jobs(["+experiment=ablation"])) == 8


def test_the_command_line_replaces_the_lists_of_the_experiment() -> None:
    jobs = read_jobs(["+experiment=denoise_sweep", "policy=baseline", "denoise.steps=2,1"])
    assert [job.folder for job in jobs] == ["0_baseline_steps2", "1_baseline_steps1"]
    assert all(job.overrides.count("policy=baseline") == 1 for job in jobs)


@pytest.mark.parametrize(
    ("steps", "folder"), [("3", "0_baseline_steps3"), ("null", "0_baseline_stepsas_saved")]
)
def test_a_sweep_and_hydras_own_name_the_folder_of_a_job_alike(
    steps: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["checkpoint=lerobot_pi05_libero", f"denoise.steps={steps}"]
    monkeypatch.setattr("sys.argv", ["eval", *overrides, "hydra.job.num=0"])
    [job] = read_jobs(overrides)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("config", [*overrides, "hydra.job.num=0"], return_hydra_config=True)
    assert cfg.hydra.sweep.subdir == job.folder == folder


def test_a_folder_is_named_by_what_is_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["optim/vision=eager,compile", "suite.tasks=[0,3],[1]", "protocol=smoke"]
    folders = [job.folder for job in read_jobs(typed)]
    assert folders[1] == "1_baseline_steps10_optim-vision=eager_tasks=[1]"
    assert len(set(folders)) == 4
    monkeypatch.setattr("sys.argv", ["eval", "-m", *typed])
    job = ["optim/vision=eager", "suite.tasks=[1]", "protocol=smoke"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("config", [*job, "hydra.job.num=1"], return_hydra_config=True)
    assert cfg.hydra.sweep.subdir == folders[1]
    long = swept_words(["checkpoint.path=/a/../b c"] * 9, typed=())
    assert len(long) == 80
    assert long.startswith("_path=-a-..-b-c_path=")


def test_a_launchers_process_names_the_folder_before_it_runs_the_job() -> None:
    code = (
        "import eval.app.command\nfrom omegaconf import OmegaConf\n"
        "print(OmegaConf.create({'a': ['seed=7'], 'word': '${steps_word:null}${swept_words:${a}}'}).word)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "as_saved_seed=7\n"


def test_a_comma_within_brackets_is_one_value() -> None:
    [job] = read_jobs(["suite.tasks=[0,3]"])
    assert job.overrides == ("suite.tasks=[0,3]",)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("denoise.steps=10,0", "job denoise.steps=0: denoise.steps must be >= 1, got 0"),
        ("hydra.run.dir=x", "hydra.run.dir is not read by a sweep"),
        ("resume=x", "resume belongs to one run"),
        ("seed=interval(1,2)", "seed must be one value or a list of values"),
    ],
)
def test_wrong_values_are_refused_before_the_first_job(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_jobs([argument])
    assert message in str(refused.value)


def test_an_unknown_choice_is_refused_before_the_first_job() -> None:
    with pytest.raises(HydraException):
        read_jobs(["policy=baseline,basline"])


def test_a_sweep_of_nothing_says_what_it_needs_and_which_sweeps_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = Jobs()
    for arguments in ([], ["--margin", "3"]):
        with pytest.raises(SystemExit) as ended:
            sweep(arguments, jobs)
        assert ended.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "give lists of values, as in policy=baseline,native_fp8" in said
        assert "+experiment=ablation, +experiment=denoise_sweep" in said
    assert jobs.seen == []


def test_the_sweeps_there_are_bring_lists() -> None:
    assert all(len(read_jobs([name])) > 1 for name in experiments())
    assert "+experiment=oracle_full" not in experiments()
