"""The command line as users meet it: bad input costs one readable line; a run leaves records, and W&B has
them."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.app import CONF, CommandError
from eval.cli import main, plain
from eval.config.groups import options
from eval.config.schema import register
from eval.records.folders import RUN_FILE
from eval.records.reader import read_run
from eval.records.schema import EpisodeRecord
from eval.records.writer import RunWriter
from eval.runners.local import LocalRunner
from policies.files import ROOT
from policies.pi05.checkpoint import file_sha256
from policies.pi05.dims import STAGES
from policies.pi05.norm_stats import unit_stats, write_json_stats
from tests.eval.fake_run import results
from tests.eval.wandb_file import history

Refusal = Callable[..., str]

BASELINE = ("policy=baseline", "checkpoint=random_small")
BAD_INPUT = {
    "misspelt key": (["sede=3"], "unknown key sede; did you mean seed?"),
    "misspelt nested key": (["suite.taks=[3]"], "unknown key suite.taks; did you mean suite.tasks?"),
    "key like no other": (
        ["runner.x=3"],
        "unknown key runner.x; known keys: name, max_errors, warmup_inferences, workers, policies, ",
    ),
    "unknown suite": (
        ["suite=libero_foo"],
        "suite must be one of libero_10, libero_90, libero_goal, libero_object, libero_spatial, "
        "got 'libero_foo'",
    ),
    "unknown backend": (
        ["policy=baseline", "optim/vision=abacus"],
        "optim/vision must be one of compile, cuda_graph, eager, ",
    ),
    "unknown option": (["video=some"], "video must be one of failures, all, none, got 'some'"),
    "value out of range": (["denoise.steps=0"], "denoise.steps must be >= 1, got 0"),
    "text for a number": (["denoise.steps=abc"], "denoise.steps must be a whole number, got 'abc'"),
    "text for a truth": (
        ["checkpoint.state_in_prompt=maybe"],
        "checkpoint.state_in_prompt must be true or false, got 'maybe'",
    ),
    "number for a list": (["suite.tasks=3"], "suite.tasks must be a list, as in [0,3], got int"),
    "list for a text": (["policy.name=[a]"], "policy.name must be text, got ['a']"),
    "null for a number": (["runner.max_errors=null"], "runner.max_errors must have a value, got null"),
    "task out of range": (["suite.tasks=[3,10]"], "suite.tasks must be 0 to 9 for libero_spatial, got [10]"),
    "episode out of range": (
        ["protocol.first_episode=48"],
        "protocol.first_episode + protocol.episodes must be <= 50, the official initial states of "
        "libero_spatial task 0, got 48 + 3",
    ),
    "override without a value": (
        ["denoise.steps"],
        "cannot read the override 'denoise.steps' (missing EQUAL at '<EOF>'); write key=value",
    ),
    "override with an open bracket": (
        ["suite.tasks=[3"],
        "cannot read the override 'suite.tasks=[3'",
    ),
    "sweep without -m": (
        ["seed=1,2"],
        "seed must be one value, got 1,2; add -m to run them one after another",
    ),
    "range without -m": (["seed=range(1,3)"], "seed must be one value, got range(1,3); add -m to run them "),
    "list without brackets": (
        ["suite.tasks=0,3"],
        "suite.tasks must be a list, got 0,3; write suite.tasks=[0,3]",
    ),
    "no such device": (
        [*BASELINE, "policy.device=abacus"],
        "policy.device must be auto, cpu, cuda or cuda:N, got 'abacus'",
    ),
    "backend without a slash": (
        [*BASELINE, "optim.vision=eager"],
        "optim.vision must be a backend, chosen with a slash as in optim/vision=eager, got 'eager'",
    ),
    "option of another backend": (
        [*BASELINE, "optim.denoise.kernel=ring"],
        "optim.denoise.kernel is an option of optim/denoise=fused, not of optim/denoise=eager; "
        "add optim/denoise=fused",
    ),
    "option of a backend without backends": (
        ["policy=oracle", "optim.denoise.kernel=ring"],
        "optim.denoise.kernel is an option of optim/denoise=fused, not of a policy without stages; "
        "add optim/denoise=fused",
    ),
    "option of several other backends": (
        [*BASELINE, "optim.denoise.warmup=5"],
        "optim.denoise.warmup is an option of optim/denoise=compile, optim/denoise=cuda_graph, "
        "optim/denoise=fused, not of optim/denoise=eager; add one of them",
    ),
    "option that nobody has": (
        [*BASELINE, "optim/denoise=fused", "optim.denoise.kernal=ring"],
        "unknown key optim.denoise.kernal; did you mean optim.denoise.kernel?",
    ),
    "option that a backend lacks": (
        [*BASELINE, "+optim.vision.speed=11"],
        "optim.vision refused its options: Eager.__init__() got an unexpected keyword argument 'speed'",
    ),
    "backend for the oracle": (
        ["policy=oracle", "+optim/vision=eager"],
        "optim.vision must be null with policy=oracle, which has no stages, got ",
    ),
    "pickle": (
        ["policy=baseline", "checkpoint=native", "checkpoint.path=pi05.pt"],
        "checkpoint.path must be a folder with model.safetensors, got the pickle 'pi05.pt'; ",
    ),
    "checkpoint that is not there": (
        ["policy=baseline", "checkpoint=native", "checkpoint.path=no/where"],
        "checkpoint.path: no folder 'no/where' (looked at ",
    ),
    "checkpoint without a path": (
        ["policy=baseline", "checkpoint=native"],
        "checkpoint.path must be a folder with layout=native, got None",
    ),
    "oracle on another suite": (
        ["policy=oracle", "suite=libero_10"],
        "policy=oracle serves suite=libero_spatial alone, got suite=libero_10",
    ),
    "online without a login": (
        ["tracking.mode=online"],
        "tracking mode online needs a W&B login, and there is none: set WANDB_API_KEY, run `wandb login`, "
        "or use tracking mode offline",
    ),
    "shard that is none": (["shard=3/2"], "shard must be i/n with 1 <= i <= n, as in 1/4, got 3/2"),
    "option of another runner": (
        ["runner.workers=3"],
        "runner=local does not read runner.workers=3; add runner=ray",
    ),
    "policies without workers": (
        ["runner=ray", "runner.workers=1", "runner.policies=2"],
        "runner.policies must be <= runner.workers=1, got 2",
    ),
    "a GPU by its number with Ray": (
        ["runner=ray", "policy.device=cuda:1"],
        "policy.device must be auto, cpu or cuda with runner=ray, which hands out the GPUs, got 'cuda:1'",
    ),
    "resume without a folder": (
        ["resume="],
        "resume must be the folder of a run, got ''; give resume=FOLDER",
    ),
    "resume of nothing": (["resume=no/where"], "no/where holds no records: episodes.jsonl is missing"),
    "folder that cannot be": (["hydra.run.dir=/dev/null/run"], "[Errno 20] Not a directory: '/dev/null/run'"),
}


@pytest.fixture
def command_line(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """`main` with these arguments, its output below `tmp_path`; what it leaves in the process is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def run(*arguments: str, full_error: str = "0") -> None:
        GlobalHydra.instance().clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
        where = [] if any(a.startswith("hydra.") for a in arguments) else [f"hydra.run.dir={tmp_path}/run"]
        monkeypatch.setattr(sys, "argv", ["eval", *where, *arguments])
        main()

    yield run
    GlobalHydra.instance().clear()
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def refusal(command_line: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> Refusal:
    """What bad input prints: exit status 1, nothing on stdout, one line on stderr, which is returned."""

    def refuse(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            command_line(*arguments)
        out, err = capfd.readouterr()
        assert exit_.value.code == 1
        assert out == ""
        assert err.endswith("\n")
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return refuse


@pytest.mark.parametrize(("arguments", "expected"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_that_tells_what_to_do(
    refusal: Refusal, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    assert refusal(*arguments).startswith(expected)
    assert not list(tmp_path.glob(f"run/{RUN_FILE}"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_cuda_where_there_is_none_is_refused(refusal: Refusal) -> None:
    line = refusal(*BASELINE, "policy.device=cuda")
    assert line.startswith("policy.device=cuda is not there: torch ")
    assert line.endswith("sees 0 GPUs; use policy.device=cpu or auto")


def test_a_folder_with_records_is_refused_before_anything_starts(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_FILE).write_text("{}")
    assert refusal("seed=1") == f"{tmp_path}/run already holds records (run.json); choose a new folder"
    assert (tmp_path / "run" / RUN_FILE).read_text() == "{}"
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_full_trace_is_there_for_those_who_ask(command_line: Callable[..., None]) -> None:
    with pytest.raises(CommandError, match=r"denoise\.steps must be >= 1, got 0"):
        command_line("denoise.steps=0", full_error="1")


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
    assert runs == ["0_baseline_steps10", "2_baseline_steps10"]


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
    engaged = {stage: (of["backend"], of["calls"], of["misses"]) for stage, of in run["engagement"].items()}
    assert engaged == dict.fromkeys(("vision", "prefix", "denoise"), ("eager", 3, 0))
    assert run["tracking_error"] is None


@pytest.mark.sim
def test_a_sweep_has_a_folder_for_each_job(tmp_path: Path, home: Path) -> None:
    arguments = ["policy=oracle", "seed=1,2", "suite.max_steps=3", "protocol=smoke"]
    done = evaluate("-m", *arguments, f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.glob(f"sweep/*/{RUN_FILE}"))
    assert [folder.name for folder in folders] == ["0_oracle_steps10", "1_oracle_steps10"]
    runs = [read_run(folder) for folder in folders]
    assert [episode.seed for run in runs for episode in run.episodes] == [1, 2]
    assert all(run.run["finished"] for run in runs)


def test_a_refused_run_leaves_nothing_behind(command_line: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command_line("suite.max_steps=0", f"hydra.run.dir={tmp_path}/refused")
    assert not (tmp_path / "refused").exists()


def test_a_run_whose_configuration_changed_is_not_continued(refusal: Refusal, tmp_path: Path) -> None:
    folder = tmp_path / "earlier"
    RunWriter(folder).close()
    overrides = ["policy=oracle", "protocol=smoke", "suite.max_steps=3", "tracking=none"]
    with initialize_config_dir(CONF, version_base="1.3"):
        register()
        config = plain(compose("config", overrides))
    before = {"config": config, "overrides": overrides, "episodes": [{}]}
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
        writer.write_run(run_json | about)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("choose_tasks", "_tracker", "reopen", "open_runner"):
        monkeypatch.setattr(f"eval.cli.{name}", lambda *_, name=name: pytest.fail(f"{name} was called"))
    command_line(f"resume={folder}")
    out, err = capfd.readouterr()
    assert err == "nothing is left to run: 1 episode finished\n"
    assert "1 / 1" in out
    assert out.endswith(f"records: {folder}\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_help_lists_what_can_be_chosen_and_explains_keys_that_exist(
    command_line: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command_line("--help")
    assert exit_.value.code == 0
    said = capfd.readouterr().out
    assert "schema" not in said
    groups = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith("  "))
    for group in ("suite", "protocol", "policy", "checkpoint", "runner", "tracking", "+experiment"):
        assert groups[group].startswith(", ".join(options(group.lstrip("+"))))
    assert "_pi05" not in groups["policy"]
    for stage in STAGES:
        assert groups[f"optim/{stage}"] == ", ".join(options(f"optim/{stage}"))
    keys = [word for word in groups if "=" in word]
    assert {"denoise.steps=3", "seed=7", "resume=FOLDER"} <= set(keys)
    with initialize_config_dir(CONF, version_base="1.3"):
        register()
        compose("config", keys)  # Hydra refuses a key that is not there


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--foo", "-x"], "unknown flag --foo, -x"),
        (["--cfg", "foo"], "argument --cfg/-c: invalid choice: 'foo' (choose from "),
        (
            ["--cfg", "job", "seed=3"],
            "seed=3 must stand with the other KEY=VALUE, without a flag between them",
        ),
    ],
    ids=["unknown", "unknown value", "a key behind a flag"],
)
def test_a_wrong_flag_is_one_line_and_exit_2(
    command_line: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command_line(*arguments)
    assert exit_.value.code == 2
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert out == ""
    assert line.startswith(f"error: {expected}")
    assert line.endswith("; `python -m eval --help` explains keys and flags")


@pytest.mark.sim
def test_a_ray_run_ends_cleanly_at_ctrl_c_and_the_local_runner_goes_on(tmp_path: Path, home: Path) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    what = ["suite.tasks=[0,4]", "protocol.episodes=2", "suite.max_steps=8", "tracking=none"]
    what += ["policy.device=cpu", "policy.precision=float32"]
    ray = ["runner=ray", "runner.workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "eval", *what, *ray, f"hydra.run.dir={folder}"],
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
    assert f"go on with it: python -m eval resume={folder}" in err
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert gone
    assert not alive
    assert 0 < len(read_run(folder).episodes) < 4

    done = evaluate(f"resume={folder}", "runner=local")
    assert done.returncode == 0, done.stderr
    assert evaluate(*what, f"hydra.run.dir={whole}").returncode == 0
    assert results(read_run(folder)) == results(read_run(whole))
    assert [line["runner"]["name"] for line in read_run(folder).run["resumed"]] == ["local"]
