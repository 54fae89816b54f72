"""The command line as users meet it: bad input costs one readable line; a run leaves records, and W&B has
them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra import compose, initialize_config_dir

from eval.app.command import CONF
from eval.config.compose import plain
from eval.config.schema import register
from eval.records.folders import RUN_FILE
from eval.records.reader import read_run
from eval.records.schema import EpisodeRecord
from eval.records.writer import RunWriter
from eval.runners.local import LocalRunner
from policies.files import ROOT
from policies.pi05.dims import STAGES
from policies.pi05.norm_stats import unit_stats, write_json_stats
from policies.pi05.weight_files import file_sha256
from policies.text import quoted
from tests.eval.fake_run import results
from tests.eval.wandb_file import history


def test_one_bad_job_of_a_sweep_does_not_stop_the_others(
    command_line: Callable[..., None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = []
    monkeypatch.setattr(LocalRunner, "run", lambda runner, plan, books: ran.append(plan.episodes.seed))
    with pytest.raises(SystemExit) as exit_:
        command_line("-m", "seed=1,-1,2", "tracking=none", f"hydra.sweep.dir={tmp_path}/sweep")
    assert exit_.value.code == 1
    assert ran == [1, 2]
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error")] == [
        "error: seed must be 0 to 2**32 - 1, as NumPy's, got -1"
    ]
    runs = sorted(path.parent.name for path in tmp_path.glob(f"sweep/*/{RUN_FILE}"))
    assert runs == ["0_baseline_steps10_seed=1", "2_baseline_steps10_seed=2"]


def test_the_first_line_names_stages_on_another_backend_than_the_policys_own(
    command_line: Callable[..., None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalRunner, "run", lambda runner, plan, books: None)
    eager = [f"optim/{stage}=eager" for stage in STAGES]
    command_line("checkpoint=random_small", "policy=native_fp8", *eager, "tracking=none")
    [line] = [line for line in capfd.readouterr().err.splitlines() if "records: " in line]
    assert " | policy native_fp8 (vision eager, prefix eager, denoise eager) | checkpoint " in line


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "eval", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.sim
def test_a_run_leaves_records_and_wandb_holds_every_latency(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "run"
    norm_stats = tmp_path / "norm_stats.json"
    write_json_stats(norm_stats, unit_stats())
    arguments = ["checkpoint=random_small", "policy=baseline", "protocol=smoke", "suite.max_steps=12"]
    arguments += [f"checkpoint.norm_stats={norm_stats}", "runner.warmup_inferences=1"]
    done = evaluate(*arguments, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "*** RANDOM WEIGHTS (small) ***" in done.stdout
    for row in ("vision", "prefix", "denoise", "host to host"):
        assert re.search(rf"^ *{row} +2 +\d+\.\d\d ", done.stdout, re.MULTILINE), row  # n, then p50 in ms
    assert f"records: {folder}" in done.stdout

    run = read_run(folder)
    (episode,) = run.episodes
    assert run.warnings == ()
    assert (episode.success, episode.steps, episode.inferences) == (False, 12, 3)  # 5 + 5 + 2 actions
    assert [record.warmup for record in run.inferences] == [True, False, False]
    assert [set(record.stage_ms) for record in run.inferences] == [{"vision", "prefix", "denoise"}] * 3

    rows = [row for row in history(folder) if "inference/index" in row]
    assert [row["inference/infer_ms"] for row in rows] == [record.infer_ms for record in run.inferences]
    for stage in ("vision", "prefix", "denoise"):
        stored_ms = [row[f"inference/{stage}_ms"] for row in rows]
        assert stored_ms == [record.stage_ms[stage] for record in run.inferences]

    check_run_json(json.loads((folder / RUN_FILE).read_text()))
    assert run.run["policy"]["norm_stats_sha256"] == file_sha256(norm_stats)


def check_run_json(run: dict[str, Any]) -> None:
    assert run["finished"] is True
    assert run["config"]["suite"]["max_steps"] == 12
    assert run["config"]["denoise"]["steps"] == 10
    assert run["config"]["optim"]["vision"] == {"_target_": "optim.eager.Eager"}
    assert {"protocol=smoke", "suite.max_steps=12"} <= set(run["overrides"])
    assert "-m eval" in run["provenance"]["command"]
    assert run["provenance"]["git"]["error"] is None
    assert len(run["provenance"]["git"]["commit"]) == 40
    assert run["provenance"]["packages"]["mujoco"] == "3.2.3"
    assert run["gl_backend"] in ("egl", "osmesa")
    assert run["weights_label"] == "RANDOM WEIGHTS (small)"
    assert [len(run["policy"]["weights_sha256"]), len(run["first_frame_sha256"])] == [64, 64]
    engaged = {
        stage: (served["backend"], served["calls"], served["misses"])
        for stage, served in run["engagement"].items()
    }
    assert engaged == dict.fromkeys(("vision", "prefix", "denoise"), ("eager", 3, 0))
    assert run["tracking_error"] is None


@pytest.mark.sim
def test_a_sweep_has_a_folder_for_each_job(tmp_path: Path, home: Path) -> None:
    arguments = ["policy=oracle", "seed=1,2", "suite.max_steps=3", "protocol=smoke"]
    done = evaluate("-m", *arguments, f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.glob(f"sweep/*/{RUN_FILE}"))
    assert [folder.name for folder in folders] == ["0_oracle_steps10_seed=1", "1_oracle_steps10_seed=2"]
    assert "Runs side by side (verdict at a margin of 2 points of success)" in done.stdout
    assert f" -m eval.report {tmp_path}/sweep\n" in done.stderr
    runs = [read_run(folder) for folder in folders]
    assert [episode.seed for run in runs for episode in run.episodes] == [1, 2]
    assert all(run.run["finished"] for run in runs)


@pytest.mark.sim
def test_a_run_on_a_suite_that_the_checkpoint_does_not_know_carries_a_warning(
    tmp_path: Path, home: Path
) -> None:
    arguments = ["suite=libero_10", "protocol=smoke", "suite.max_steps=1", "tracking=none"]
    done = evaluate(*arguments, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    known = "libero_spatial, libero_object, libero_goal"
    warning = f"checkpoint=reference was trained for {known}, not for libero_10"
    assert f"warning: {warning}" in done.stderr
    steps = "suite.max_steps=1, not the 520 of libero_10: success is not comparable with that of others"
    run = read_run(tmp_path / "run").run
    assert [note.partition(";")[0] for note in run["notes"]] == [warning, steps]
    assert run["config"]["checkpoint"]["path"] == "policies/reference/weights"
    assert f"warning: {warning}" in " ".join(done.stdout.split())


def test_a_refused_run_leaves_nothing_behind(command_line: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command_line("suite.max_steps=0", f"hydra.run.dir={tmp_path}/refused")
    assert not (tmp_path / "refused").exists()


def test_a_run_whose_configuration_changed_is_not_continued(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "earlier"
    RunWriter(folder).close()
    overrides = ["policy=oracle", "protocol=smoke", "suite.max_steps=3", "tracking=none"]
    with initialize_config_dir(CONF, version_base="1.3"):
        register()
        config = plain(compose("config", overrides))
    origin = {"git": {}, "packages": {}}
    before = {"config": config, "overrides": overrides, "episodes": [], "policy": {}, "provenance": origin}
    (folder / RUN_FILE).write_text(json.dumps(before))
    expected = f"{folder} has another configuration, policy or simulator: suite.max_steps was 3, is 4"
    assert refusal(f"resume={folder}", "suite.max_steps=4") == expected
    config["suite"]["max_steps"] = 9  # as if the YAML had changed since
    (folder / RUN_FILE).write_text(json.dumps(before))
    assert refusal(f"resume={folder}") == expected.replace("was 3, is 4", "was 9, is 3")


def test_a_finished_run_is_shown_again_and_nothing_is_loaded(
    command_line: Callable[..., None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    make_episode: Callable[..., EpisodeRecord],
    run_json: dict[str, Any],
) -> None:
    folder = tmp_path / "earlier"
    overrides = ["policy=baseline", "protocol=smoke", "checkpoint=random_small"]
    with initialize_config_dir(CONF, version_base="1.3"):
        register()
        config = plain(compose("config", overrides))
    with RunWriter(folder) as writer:
        writer.add_episode(make_episode(policy="baseline"))
        planned = {"suite": "libero_spatial", "tasks": [0], "first": 0, "count": 1, "seed": 7, "shard": None}
        about = {"config": config, "overrides": overrides, "episodes": [planned], "finished": True}
        writer.write_run(run_json | about | {"provenance": {"git": {}, "packages": {}}})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in (
        "app.session.choose_tasks",
        "cli._tracker",
        "app.session.reopen",
        "runners.open.open_runner",
    ):
        monkeypatch.setattr(f"eval.{name}", lambda *_, name=name: pytest.fail(f"{name} was called"))
    command_line(f"resume={folder}")
    out, err = capfd.readouterr()
    assert err == "nothing is left to run: 1 episode finished\n"
    assert "1 / 1" in out
    assert f"\nrecords: {folder}\n" in out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.sim
def test_a_ray_run_ends_cleanly_at_ctrl_c_and_the_local_runner_goes_on(tmp_path: Path, home: Path) -> None:
    folder, whole = tmp_path / "my $(run)=1, 'a'", tmp_path / "whole"
    what = ["suite.tasks=[0,4]", "protocol.episodes=2", "suite.max_steps=8", "tracking=none"]
    what += ["policy.device=cpu", "policy.precision=float32"]
    ray = ["runner=ray", "runner.workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "eval", *what, *ray, quoted("hydra.run.dir", str(folder))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, as these tests may be, ignores ctrl-C and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    episodes = folder / "episodes.jsonl"
    while process.poll() is None and not (episodes.exists() and episodes.stat().st_size):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    go_on = err.partition("go on with it: ")[2].splitlines()[0]
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert gone
    assert not alive
    assert 0 < len(read_run(folder).episodes) < 4

    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # pasted as it stands, in another folder
    done = subprocess.run(
        f"{go_on} runner=local",
        shell=True,
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert evaluate(*what, f"hydra.run.dir={whole}").returncode == 0
    assert results(read_run(folder)) == results(read_run(whole))
    assert [line["runner"]["name"] for line in read_run(folder).run["resumed"]] == ["local"]
