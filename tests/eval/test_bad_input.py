"""Bad input ends `python -m eval` with one line that names the key, the value and the way out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from eval.app.command import CONF, CommandError
from eval.config.groups import options
from eval.config.schema import register
from eval.records.folders import RUN_FILE
from policies.pi05.dims import STAGES

BASELINE = ("policy=baseline", "checkpoint=random_small")


NOWHERE = ["policy=baseline", "policy.device=cpu", "checkpoint=native", "checkpoint.path=no/where"]
SERVER = ["policy=remote", "policy.url=ws://127.0.0.1:1", "policy.label=x", "policy.connect_timeout_s=0.1"]

BAD_INPUT = {
    "misspelt key": (["sede=3"], "unknown key sede; did you mean seed?"),
    "misspelt nested key": (["suite.taks=[3]"], "unknown key suite.taks; did you mean suite.tasks?"),
    "key like no other": (
        ["runner.x=3"],
        "unknown key runner.x; known keys: name, max_errors, warmup_inferences, workers, policies, ",
    ),
    "key that a plus adds": (
        ["+suite.max_step=5"],
        "unknown key suite.max_step; did you mean suite.max_steps?",
    ),
    "key that a plus adds at the top": (["+foo=1"], "unknown key foo; known keys: suite, protocol, "),
    "key that two pluses add": (["++seeed=1"], "unknown key seeed; did you mean seed?"),
    "key of another policy that a plus adds": (
        ["policy=oracle", "+policy.device=cpu"],
        "policy.device is no option of this policy; choose one that has it, as policy=baseline",
    ),
    "key that is removed": (["~seed"], "~seed would remove a key that is needed; give it a value: seed=..."),
    "value without a key": (["+=3"], "'+=3' has no key; write key=value"),
    "number for a choice": (["suite=3"], "suite must be one of libero_10, "),
    "nothing for a choice": (["optim/vision=null"], "optim/vision must be one of compile, "),
    "empty choice": (["suite="], "suite must be one of libero_10, "),
    "list for one choice": (["suite=[libero_goal,libero_10]"], "suite must be one of libero_10, "),
    "list of numbers for a choice": (["+experiment=[3]"], "experiment must be one of "),
    "group that is removed": (["~tracking"], "~tracking would remove a key that is needed; "),
    "launcher of one job": (
        ["hydra.launcher=nope"],
        "hydra.launcher is read with -m alone; add -m, or leave it out",
    ),
    "launcher with a dot": (
        ["-m", "hydra.launcher=nope"],
        "hydra.launcher is chosen with a slash, as in hydra/launcher=nope",
    ),
    "folder of a sweep without one": (["hydra.sweep.dir=x"], "hydra.sweep.dir is read with -m alone; "),
    "folder of a run with -m": (
        ["-m", "hydra.run.dir=x"],
        "hydra.run.dir is not read with -m; the folder is then hydra.sweep.dir=FOLDER",
    ),
    "key of Hydra's that is not read": (
        ["hydra.job.chdir=7"],
        "hydra.job.chdir is not read here; leave it out ",
    ),
    "no folder": (
        ["hydra.run.dir="],
        "hydra.run.dir must be a new folder, got ''; name one, or leave it out",
    ),
    "no folder in quotes": (["hydra.run.dir=''"], "hydra.run.dir must be a new folder, got ''; "),
    "current folder": (["hydra.run.dir=."], "hydra.run.dir must be a new folder, got '.'; "),
    "folder of a user who is not there": (
        ["hydra.run.dir=~no.such.user/run"],
        "'~no.such.user/run' begins with the home of a user who is not on this machine; give the whole path",
    ),
    "no number": (["runner.max_wait_ms=nan"], "runner.max_wait_ms must be a finite number, got nan"),
    "endless number": (
        ["policy=remote", "policy.url=ws://x", "policy.label=x", "policy.timeout_s=inf"],
        "policy.timeout_s must be a finite number, got inf",
    ),
    "unknown suite": (
        ["suite=libero_foo"],
        "suite must be one of libero_10, libero_10_lan, libero_10_object, libero_10_plus_camera, ",
    ),
    "unknown backend": (
        ["policy=baseline", "optim/vision=abacus"],
        "optim/vision must be one of compile, cuda_graph, eager, ",
    ),
    "unknown option": (["video=some"], "video must be one of failures, all, none, got 'some'"),
    "value out of range": (["denoise.steps=0"], "denoise.steps must be >= 1, got 0"),
    "value that never ends": (["denoise.steps=1000000000"], "denoise.steps must be <= 1000, got 1000000000"),
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
    "value that Hydra cannot read": (
        ["seed=~3"],
        "cannot read the override 'seed=~3' (^); if the value is text, write ",
    ),
    "value of two lines": (
        ["seed=7\nerror: all is well"],
        "cannot read the override 'seed=7\\nerror: all is well' (",
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
        [*BASELINE, "optim.denoise.attention=sdpa"],
        "optim.denoise.attention is an option of optim/denoise=compile, not of optim/denoise=eager; "
        "add optim/denoise=compile",
    ),
    "option of a backend without backends": (
        ["policy=oracle", "optim.denoise.attention=sdpa"],
        "optim.denoise.attention is an option of optim/denoise=compile, not of a policy without stages; "
        "add optim/denoise=compile",
    ),
    "option of several other backends": (
        [*BASELINE, "optim.denoise.warmup=5"],
        "optim.denoise.warmup is an option of optim/denoise=compile, optim/denoise=cuda_graph, "
        "optim/denoise=fused, not of optim/denoise=eager; add one of them",
    ),
    "option that nobody has": (
        [*BASELINE, "optim/denoise=compile", "optim.denoise.atention=sdpa"],
        "unknown key optim.denoise.atention; did you mean optim.denoise.attention?",
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
    "delay beyond the replan steps of a checkpoint that is not there": (
        [*NOWHERE, "checkpoint.replan_steps=5", "clock=async", "clock.latency_ms=300"],
        "clock=async needs a delay of at most the replan steps, got d = 6 (300 ms at 50 ms a step) and s = 5",
    ),
    "delay beyond the horizon of a checkpoint that is not there": (
        [*NOWHERE, "checkpoint.replan_steps=8", "clock=rtc", "clock.latency_ms=150", "checkpoint.horizon=10"],
        "clock=rtc needs s <= H - d actions of the old chunk, got s = 8, H = 10 and d = 3 ",
    ),
    "delay beyond the replan steps of a server that is not there": (
        [*SERVER, "policy.replan_steps=5", "clock=async", "clock.latency_ms=300"],
        "clock=async needs a delay of at most the replan steps, got d = 6 (300 ms at 50 ms a step) and s = 5",
    ),
    "checkpoint in the home": (
        ["policy=baseline", "checkpoint=native", "checkpoint.path=~/no/where"],
        "checkpoint.path: no folder '~/no/where' (looked at ",
    ),
    "checkpoint without a path": (
        ["policy=baseline", "checkpoint=native"],
        "checkpoint.path must be a folder with layout=native, got None",
    ),
    "oracle on a task that it cannot do": (
        ["policy=oracle", "suite=libero_10", "protocol=full"],
        "policy=oracle cannot do every task of suite=libero_10: 9 (",
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


@pytest.mark.parametrize(("arguments", "expected"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_that_tells_what_to_do(
    refusal: Callable[..., str], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    assert refusal(*arguments).startswith(expected)
    assert not list(tmp_path.glob(f"run/{RUN_FILE}"))


def test_a_checkpoint_that_is_linked_to_itself_is_one_line(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for key, said in {
        "checkpoint.path": "no folder",
        "checkpoint.tokenizer": "no tokenizer",
        "optim.scales": "optim.scales=",
    }.items():
        line = refusal("policy=baseline", "checkpoint=reference", "policy.device=cpu", f"{key}={loop}")
        assert said in line
        assert str(loop) in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_cuda_where_there_is_none_is_refused(refusal: Callable[..., str]) -> None:
    line = refusal(*BASELINE, "policy.device=cuda")
    assert line.startswith("policy.device=cuda is not there: torch ")
    assert line.endswith("sees 0 GPUs; use policy.device=cpu or auto")


def test_a_folder_with_records_is_refused_before_anything_starts(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_FILE).write_text("{}")
    assert refusal("seed=1") == f"{tmp_path}/run already holds records (run.json); choose a new folder"
    assert (tmp_path / "run" / RUN_FILE).read_text() == "{}"
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_folder_with_anything_in_it_is_no_new_one(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert refusal("seed=1") == f"{tmp_path}/run is no new folder: it holds notes.txt; choose a new one"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_full_trace_is_there_for_those_who_ask(command_line: Callable[..., None]) -> None:
    with pytest.raises(CommandError, match=r"denoise\.steps must be >= 1, got 0"):
        command_line("denoise.steps=0", full_error="1")


def test_help_lists_what_a_folder_of_ones_own_adds(
    command_line: Callable[..., None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").touch()
    with pytest.raises(SystemExit):
        command_line("--config-dir", str(tmp_path), "--help")
    [line] = [line for line in capfd.readouterr().out.splitlines() if line.split()[:1] == ["policy"]]
    assert "mine" in line
    assert "native_fp8" in line


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
    assert {"--config-dir", "policy=custom", "policy=remote"} <= set(said.split())
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
        (["-m", "--cfg", "job"], "--multirun and --cfg exclude each other"),
    ],
    ids=["unknown", "unknown value", "a key behind a flag", "two that exclude each other"],
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
