"""Jobs that cannot run on this machine are refused before the first begins."""

from pathlib import Path

import pytest

from eval.app.jobs.check import Reason, reason_against, refusal
from eval.sweep.cli import TABLE_FILES, main
from tests.eval.sweep.sweeps import COMMAND, Jobs, copy_without_version, sweep, sweep_file

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
        (["policy=oracle", "denoise.steps=3"], "policy=oracle has no stages, checkpoint or denoise steps"),
        (["policy=native_fp8", "policy.device=cpu"], "needs an NVIDIA GPU"),
        (["policy=baseline", "runner.workers=2"], "runner=local does not read runner.workers=2"),
    ],
)
def test_what_a_run_would_be_refused_for_is_known_before_the_sweep(overrides: list[str], reason: str) -> None:
    refused = reason_against(overrides)
    assert refused is not None
    assert reason in refused.text


def test_what_a_checkpoints_folder_leaves_open_is_known_before_the_sweep(tmp_path: Path) -> None:
    folder = copy_without_version(tmp_path / "copy")
    overrides = ["checkpoint=lerobot_pi05_libero", f"checkpoint.path={folder}"]
    assert reason_against([*overrides, "checkpoint.state_prompt_dims=32"]) is None
    reason = reason_against(overrides)
    assert reason is not None
    assert "checkpoint.state_prompt_dims" in reason.text
    (folder / "policy_preprocessor.json").unlink()
    reason = reason_against([*overrides, "checkpoint.state_prompt_dims=32"])
    assert reason is not None
    assert "policy_preprocessor.json" in reason.text


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
