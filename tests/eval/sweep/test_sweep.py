"""Sweeps: which jobs a command line means, that a failed one stops no other, and how one goes on."""

import json
import shlex
import signal
from pathlib import Path

import pytest

from eval.records.sweep import SWEEP_FILE
from eval.records.writer import RunWriter
from eval.report.cli import main as report
from eval.sweep.cli import TABLE_FILES, run_process
from tests.eval.sweep.sweeps import COMMAND, Jobs, parse, sweep, sweep_file


def test_a_failed_job_stops_no_other_and_the_table_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Jobs(broken="trt_fp8")
    assert sweep([*COMMAND, "--out", str(tmp_path / "s")], jobs) == 1
    assert len(jobs.seen) == 3
    assert [job["status"] for job in sweep_file(tmp_path / "s")] == [0, 1, 0]
    text = (tmp_path / "s" / TABLE_FILES[0]).read_text()
    assert "| 2* | native_fp8, 10 steps | 20 / 20 |" in text
    assert "1_trt_fp8_steps10: no numbers: exit status 1: no GPU here" in text
    table = json.loads((tmp_path / "s" / TABLE_FILES[1]).read_text())
    assert [run["label"] for run in table["runs"]] == ["baseline, 10 steps", "native_fp8, 10 steps"]
    captured = capsys.readouterr()
    assert "native_fp8, 10" in captured.out
    assert "exit status 1: no GPU here" in captured.err


def test_why_a_job_failed_is_what_its_last_attempt_said(tmp_path: Path) -> None:
    arguments = ["policy=trt_fp8", "denoise.steps=10", "--out", str(tmp_path / "s")]
    assert sweep(arguments, Jobs(broken="trt_fp8")) == 1
    assert [job["error"] for job in sweep_file(tmp_path / "s")] == ["exit status 1: no GPU here"]

    def killed(arguments: list[str], log: Path) -> int:
        with log.open("a") as file:
            file.write("a line\n")
        return -9

    assert sweep(["--resume", str(tmp_path / "s")], killed) == 1
    assert [job["error"] for job in sweep_file(tmp_path / "s")] == ["exit status -9, see job.log"]


def test_a_first_job_without_numbers_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep([*COMMAND, "--out", str(tmp_path / "s")], Jobs(broken="baseline")) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "The first run has no numbers (exit status 1: no GPU here); run 1 is the next that has some" in said
    )


def test_jobs_of_a_sweep_share_a_group_and_have_folders_of_their_own(tmp_path: Path) -> None:
    jobs = Jobs()
    assert sweep([*COMMAND, "--out", str(tmp_path / "s")], jobs) == 0
    assert all(parse(arguments)["tracking.group"] == "s" for arguments in jobs.seen)
    assert len({arguments[-1] for arguments in jobs.seen}) == 3
    named = Jobs()
    sweep([*COMMAND, "tracking.group=mine", "--out", str(tmp_path / "t")], named)
    assert all(parse(arguments)["tracking.group"] == "mine" for arguments in named.seen)


@pytest.mark.parametrize(
    "name", ["a (1), b=c [d]{e}: it's", "2026_11_23", "null", "x\\'y\\", "a${b}", "$\\${oc.env:HOME}\\\\${"]
)
def test_a_folder_may_have_any_name_whatever_it_means_to_hydra(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, folder = Jobs(interrupted="trt_fp8"), tmp_path / name
    assert sweep([*COMMAND, "--out", str(folder)], jobs) == 130
    chosen = parse(jobs.seen[0])
    assert (chosen["tracking.group"], chosen["hydra.run.dir"]) == (name, str(folder / "0_baseline_steps10"))
    command = capsys.readouterr().err.partition("go on with it: ")[2].splitlines()[0]
    assert shlex.split(command)[-1] == str(folder)
    resumed = Jobs()
    assert sweep(["--resume", str(folder)], resumed) == 0
    resumed_run = str(folder / "1_trt_fp8_steps10")
    assert parse(resumed.seen[0]) == {"resume": resumed_run, "tracking.group": name}


def test_an_interrupted_sweep_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    assert sweep([*COMMAND, "--out", str(folder)], Jobs(interrupted="trt_fp8")) == 130
    assert f"--resume {folder}" in capsys.readouterr().err
    assert (folder / TABLE_FILES[0]).is_file()
    jobs = Jobs()
    assert sweep(["--resume", str(folder)], jobs) == 0
    assert [arguments[0] for arguments in jobs.seen] == [
        f"resume='{folder / '1_trt_fp8_steps10'}'",
        "denoise.steps=10",
    ]
    assert [job["status"] for job in sweep_file(folder)] == [0, 0, 0]
    again = Jobs()
    assert sweep(["--resume", str(folder)], again) == 0
    assert again.seen == []


def test_a_job_that_was_killed_before_its_first_episode_is_begun_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"

    def killed(arguments: list[str], log: Path) -> int:
        RunWriter(log.parent).close()
        return -signal.SIGKILL

    one = ["policy=baseline", "denoise.steps=10"]
    assert sweep([*one, "--out", str(folder)], killed) == 1
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    jobs = Jobs()
    assert sweep(["--resume", str(folder)], jobs) == 0
    assert f"hydra.run.dir='{folder / '0_baseline_steps10'}'" in jobs.seen[0]
    assert [job["status"] for job in sweep_file(folder)] == [0]


def test_a_folder_with_a_sweep_is_not_begun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep([*COMMAND, "--out", str(tmp_path / "s")], Jobs()) == 0
    jobs = Jobs()
    assert sweep([*COMMAND, "--out", str(tmp_path / "s")], jobs) == 1
    assert jobs.seen == []
    assert "already holds a sweep; go on with it by --resume" in capsys.readouterr().err
    assert sweep(["--resume", str(tmp_path / "nowhere")], jobs) == 1


JOB = {"folder": "0_a", "label": "a", "overrides": ["policy=a"]}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{", "is not JSON (EOF while parsing"),
        ("[]", "has no list `jobs`"),
        ('{"jobs": []}', "has no job in `jobs`"),
        (json.dumps({"jobs": [JOB, 3]}), "is damaged: jobs[1]: Input should be an object, got 3"),
        (
            json.dumps({"jobs": [{**JOB, "folder": None}]}),
            "is damaged: jobs[0].folder: Input should be a valid string, got None",
        ),
        (json.dumps({"jobs": [{"folder": "a"}]}), "is damaged: jobs[0].label: Field required"),
        (
            json.dumps({"jobs": [{**JOB, "overrides": [1]}]}),
            "is damaged: jobs[0].overrides[0]: Input should be a valid string, got 1",
        ),
        (
            json.dumps({"jobs": [{**JOB, "error": 1}]}),
            "is damaged: jobs[0].error: Input should be a valid string, got 1",
        ),
        (
            json.dumps({"jobs": [{**JOB, "status": "0"}]}),
            "is damaged: jobs[0].status: Input should be a valid integer, got '0'",
        ),
        (
            json.dumps({"jobs": [{**JOB, "wall_s": "3"}]}),
            "is damaged: jobs[0].wall_s: Input should be a valid number, got '3'",
        ),
        (
            json.dumps({"jobs": [{**JOB, "size": 1}]}),
            "is damaged: jobs[0].size: Unexpected keyword argument, got 1",
        ),
    ],
)
def test_a_damaged_list_of_jobs_is_one_line_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, wrong: str
) -> None:
    (tmp_path / SWEEP_FILE).write_text(content)
    for command in (lambda: sweep(["--resume", str(tmp_path)], Jobs()), lambda: report([str(tmp_path)])):
        assert command() == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {tmp_path / SWEEP_FILE} {wrong}")
        assert line.endswith("; name the folders of its runs instead, or begin a new sweep")


def test_a_sweep_in_which_all_failed_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(["policy=trt_fp8", "--out", str(tmp_path / "s")], Jobs(broken="trt_fp8")) == 1
    assert "no episode to report on" in capsys.readouterr().err


def test_a_sweep_is_what_a_report_is_made_of(tmp_path: Path) -> None:
    sweep([*COMMAND, "--out", str(tmp_path / "s")], Jobs(broken="native_fp8"))
    assert report([str(tmp_path / "s")]) == 0
    text = (tmp_path / "s" / "report.html").read_text()
    assert "2_native_fp8_steps10: exit status 1: no GPU here" in text
    assert "trt_fp8, 10 steps" in text


def test_a_job_is_a_process_whose_words_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    assert run_process(["--cfg", "job", "denoise.steps=3"], log) == 0
    assert "steps: 3" in log.read_text()
    assert run_process(["denoise.steps=0", f"hydra.run.dir={tmp_path / 'run'}"], log) == 1
    assert "error: denoise.steps must be >= 1, got 0" in log.read_text().splitlines()
