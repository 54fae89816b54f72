"""Sweeps: which jobs a command line means, that a failed one stops no other, and how one goes on."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from eval.config.schema import ConfigError
from eval.records.sweep import SWEEP_FILE
from eval.report.cli import main as report
from eval.sweep.check import Reason, reason_against, refusal
from eval.sweep.cli import TABLE_FILES, RunJob, main, run_process
from eval.sweep.jobs import experiments, read_jobs
from tests.eval.written_runs import write_run


@pytest.fixture(autouse=True)
def _no_hydra_and_no_power_loss(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    GlobalHydra.instance().clear()
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    yield
    GlobalHydra.instance().clear()


def parse(arguments: list[str]) -> dict[str, str]:
    """The keys and values of a job, as Hydra reads them."""
    parsed = OverridesParser.create().parse_overrides(arguments)
    assert not any(of.is_sweep_override() for of in parsed)
    chosen = OmegaConf.create({of.get_key_element(): of.value() for of in parsed})
    return {str(key): str(value) for key, value in chosen.items()}


class Jobs:
    """Runs no process: writes a run, unless the job's policy is among `broken` or `interrupted`."""

    def __init__(self, broken: str = "none", interrupted: str = "none") -> None:
        self.seen: list[list[str]] = []
        self._broken, self._interrupted = broken, interrupted

    def __call__(self, arguments: list[str], log: Path) -> int:
        self.seen.append(arguments)
        chosen = parse(arguments)
        if "resume" in chosen:
            path = Path(chosen["resume"], "run.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), "finished": True}))
            return 0
        folder, policy = Path(chosen["hydra.run.dir"]), chosen["policy"]
        if policy == self._broken:
            with log.open("a") as file:  # as a process does
                file.write("a line\nerror: no GPU here\n")
            return 1
        steps = int(chosen["denoise.steps"])
        if policy == self._interrupted:
            write_run(folder, policy=policy, steps=steps, count=5, run={"finished": False})
            raise KeyboardInterrupt
        write_run(folder, policy=policy, steps=steps, count=20)
        return 0


COMMAND = ["policy=baseline,trt_fp8,native_fp8", "denoise.steps=10"]


def sweep(arguments: list[str], run_job: RunJob, reasons: Mapping[str, str] = MappingProxyType({})) -> int:
    """Run a sweep on a machine that cannot run the policies of `reasons`."""

    def find_reasons(jobs: Sequence[Sequence[str]]) -> list[Reason | None]:
        policies = [next(text for text in job if text.startswith("policy=")) for job in jobs]
        found = [reasons.get(policy.removeprefix("policy=")) for policy in policies]
        return [None if reason is None else Reason(reason) for reason in found]

    return main(arguments, run_job, find_reasons)


def sweep_file(folder: Path) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = json.loads((folder / SWEEP_FILE).read_text())["jobs"]
    return jobs


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
    assert parse(resumed.seen[0]) == {"resume": str(folder / "1_trt_fp8_steps10")}


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
        ("{", "is not JSON (Expecting property name"),
        ("[]", "has no list `jobs`"),
        (json.dumps({"jobs": [JOB, 3]}), "is damaged: jobs[1] must be an object, got 3"),
        (
            json.dumps({"jobs": [{**JOB, "folder": None}]}),
            "is damaged: jobs[0].folder must be text, got None",
        ),
        (json.dumps({"jobs": [{"folder": "a"}]}), "is damaged: jobs[0].label must be text, got nothing"),
        (
            json.dumps({"jobs": [{**JOB, "overrides": [1]}]}),
            "is damaged: jobs[0].overrides must be a list of",
        ),
        (
            json.dumps({"jobs": [{**JOB, "error": 1}]}),
            "is damaged: jobs[0].error must be text or null, got 1",
        ),
        (
            json.dumps({"jobs": [{**JOB, "status": "0"}]}),
            "is damaged: jobs[0].status must be a whole number or null, got '0'",
        ),
        (
            json.dumps({"jobs": [{**JOB, "wall_s": "3"}]}),
            "is damaged: jobs[0].wall_s must be a number or null, got '3'",
        ),
        (json.dumps({"jobs": [{**JOB, "size": 1}]}), "is damaged: jobs[0] has unknown keys: size"),
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


NO_GPU = {"trt_fp8": "trt_fp8 needs a GPU", "native_fp8": "native_fp8 needs a GPU"}


def test_jobs_that_cannot_run_here_are_refused_before_the_first_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Jobs()
    steps = ["policy=baseline,trt_fp8,native_fp8", "denoise.steps=10,3"]
    assert sweep([*steps, "--out", str(tmp_path / "s")], jobs, NO_GPU) == 1
    assert jobs.seen == []
    assert not (tmp_path / "s").exists()
    assert capsys.readouterr().err.splitlines() == [
        "2 jobs: trt_fp8 needs a GPU",
        "2 jobs: native_fp8 needs a GPU",
        "error: 4 of 6 jobs cannot run here; leave out policy=trt_fp8, policy=native_fp8, or run the 2 other "
        "jobs with --only-runnable",
    ]


def test_a_reason_of_many_jobs_is_said_once_above_what_cannot_run() -> None:
    jobs = [
        [f"policy={policy}", f"optim/vision={vision}", "policy.device=cpu"]
        for policy in ("baseline", "native_fp8", "realtime")
        for vision in ("eager", "cuda_graph")
    ]
    details, line = refusal(jobs, [reason_against(job) for job in jobs])
    assert details.splitlines() == [
        "5 jobs: it needs an NVIDIA GPU, got policy.device=cpu:",
        "  optim/vision=cuda_graph",
        "  policy=native_fp8 (prefix on fp8, denoise on compile)",
        "  policy=realtime (prefix on fused_fp8, denoise on fused, images on cuda_graph)",
    ]
    assert line == (
        "5 of 6 jobs cannot run here; leave out optim/vision=cuda_graph, policy=native_fp8, policy=realtime, "
        "or run the 1 other job with --only-runnable"
    )
    every = [[f"policy=p{i}"] for i in range(15)]
    reasons = [Reason("", (("no GPU", f"policy=p{i}"),), "choose policy=baseline") for i in range(15)]
    details, line = refusal(every, reasons)
    assert len(details.splitlines()) == 11
    assert details.endswith("  policy=p9 and 5 more")
    assert line == "15 of 15 jobs cannot run here; choose policy=baseline"


def test_only_runnable_names_what_it_leaves_out_and_another_machine_goes_on_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, jobs = tmp_path / "s", Jobs()
    assert sweep([*COMMAND, "--only-runnable", "--out", str(folder)], jobs, NO_GPU) == 0
    assert [arguments[1] for arguments in jobs.seen] == ["policy=baseline"]
    assert [(job["status"], job["error"]) for job in sweep_file(folder)] == [
        (0, None),
        (None, "left out: trt_fp8 needs a GPU"),
        (None, "left out: native_fp8 needs a GPU"),
    ]
    text = (folder / TABLE_FILES[0]).read_text()
    assert "1_trt_fp8_steps10: no numbers: left out: trt_fp8 needs a GPU" in text
    assert "3 jobs, one at a time, 2 left out" in capsys.readouterr().err
    assert sweep(["--resume", str(folder)], Jobs(), NO_GPU) == 1
    assert "2 of 2 jobs cannot run here" in capsys.readouterr().err
    elsewhere = Jobs()
    assert sweep(["--resume", str(folder)], elsewhere) == 0
    assert len(elsewhere.seen) == 2
    assert [(job["status"], job["error"]) for job in sweep_file(folder)] == [(0, None)] * 3


def test_with_nothing_to_run_only_runnable_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["policy=trt_fp8,native_fp8", "--only-runnable", "--out", str(tmp_path / "s")]
    assert sweep(arguments, Jobs(), NO_GPU) == 1
    assert "2 of 2 jobs cannot run here" in capsys.readouterr().err


def test_the_machine_is_asked_in_a_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Jobs()
    arguments = ["policy=baseline,native_fp8", "policy.device=cpu", "--out", str(tmp_path / "s")]
    assert main(arguments, jobs) == 1
    assert jobs.seen == []
    why, what, line = capsys.readouterr().err.splitlines()
    assert why == "1 job: it needs an NVIDIA GPU, got policy.device=cpu:"
    assert what == "  policy=native_fp8 (vision on fp8, prefix on fp8, denoise on compile)"
    assert line.startswith("error: 1 of 2 jobs cannot run here; leave out policy=native_fp8, or run ")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["policy=oracle", "denoise.steps=3"], "policy=oracle has no checkpoint and no denoise steps"),
        (["policy=native_fp8", "policy.device=cpu"], "needs an NVIDIA GPU"),
        (["policy=baseline", "runner.workers=2"], "runner=local does not read runner.workers=2"),
    ],
)
def test_what_a_run_would_be_refused_for_is_known_before_the_sweep(overrides: list[str], reason: str) -> None:
    refused = reason_against(overrides)
    assert refused is not None
    assert reason in refused.text


@pytest.mark.parametrize(
    "overrides",
    [
        ["policy=baseline", "denoise.steps=3"],
        ["policy=oracle"],
        ["policy=native_fp8", "policy.device=cpu", "runner=ray"],
    ],
)
def test_nothing_speaks_against_what_can_run_here_or_where_ray_runs_it(overrides: list[str]) -> None:
    assert reason_against(overrides) is None


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
