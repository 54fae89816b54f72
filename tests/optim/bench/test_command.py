"""The command line of a bench: lists that multiply, errors on one line, exit statuses."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.config.groups import options
from eval.config.schema import ConfigError
from eval.records.observations import save_requests
from optim.base import Backend, CountedStage, StageContext, StageMismatch
from optim.bench.cli import main
from optim.bench.config import SHORT, BenchConfig, read_arguments
from tests.optim.bench.short import OBSERVATIONS, SMALL, request


def test_the_same_policy_twice_is_two_rows() -> None:
    [setting] = read_arguments(["policy=baseline,baseline"])
    assert [row.label for row in setting.rows] == ["baseline", "baseline (2)"]


def test_lists_multiply_and_policies_and_backends_make_rows() -> None:
    settings = read_arguments(["policy=baseline", "optim/vision=eager,eager", "steps=3,1", "views=2,3"])
    assert [(s.rows[0].config.denoise.steps, s.rows[0].config.bench.views) for s in settings] == [
        (3, 2),
        (3, 3),
        (1, 2),
        (1, 3),
    ]
    assert [row.label for row in settings[0].rows] == [
        "baseline optim/vision=eager",
        "baseline optim/vision=eager (2)",
    ]


def test_short_names_are_those_of_the_bench() -> None:
    [setting] = read_arguments(["views=3", "prompt_tokens=200", "rounds=7", "steps=4"])
    config = setting.rows[0].config
    assert (config.bench.views, config.bench.prompt_tokens, config.bench.rounds) == (3, 200, 7)
    assert config.denoise.steps == 4


@pytest.mark.parametrize(
    "bad", ["rounds=0", "warmup=-1", "views=0", "prompt_tokens=0", "num_observations=3"], ids=str
)
def test_a_value_out_of_range_is_refused_by_its_key(bad: str) -> None:
    with pytest.raises(ConfigError, match=rf"^bench\.{bad.partition('=')[0]} must be >= \d+, got "):
        read_arguments([f"bench.{bad}"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["policy=baseline,nope"], "policy must be one of auto, baseline, "),
        (["policy=oracle"], "policy.device is no option of this policy; choose one that has it, as policy="),
        (["~seed"], "~seed would remove a key that is needed; give it a value: seed=..."),
        (["+bench.round=3"], "unknown key bench.round; did you mean bench.rounds?"),
        (["bench.output=~no.such.user/x"], "'~no.such.user/x' begins with the home of a user who is not on"),
        (["bench.round=3"], "unknown key bench.round; did you mean bench.rounds?"),
        (["rounds=1,2"], "bench.rounds must have one value, got 1, 2; it holds for the whole bench"),
        (["suite=libero_goal,libero_10"], "suite must have one value, got libero_goal, libero_10; it holds"),
        (["views=some"], "bench.views must be a whole number, got 'some'"),
        (
            ["steps=interval(0,1)"],
            "denoise.steps must be one value or a list of values, got 'denoise.steps=int",
        ),
        (["hydra.run.dir=x"], "hydra.run.dir is not read by a bench; its folder is bench.output=FOLDER"),
        (["bench.observations=no.npz"], "no observations no.npz (looked at "),
        (["optim.prefix=eager"], "policy baseline: optim.prefix must be a backend, chosen with a slash"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str],
    expected: str,
    bench: Callable[..., tuple[int, Path]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    status, folder = bench(*arguments)
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {expected}")
    assert not list(folder.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_a_policy_that_cannot_run_here_is_named_and_nothing_else_is_run(
    bench: Callable[..., tuple[int, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    status, folder = bench("policy=baseline,native_fp8")
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: policy=native_fp8 cannot run here: it needs an NVIDIA GPU, ")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["policy.name=e", "optim.prefix=eager"], "policy e: optim.prefix must be a backend"),
        (
            ["policy=native_fp8", "policy.precision=float32,bfloat16"],
            "policy native_fp8 precision=float32: policy=native_fp8 cannot run here: ",
        ),
    ],
    ids=["a label within other words", "a label of more than the policy"],
)
def test_a_policy_whose_message_does_not_name_its_row_is_named(
    arguments: list[str],
    expected: str,
    bench: Callable[..., tuple[int, Path]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert bench(*arguments)[0] == 1
    assert capfd.readouterr().err.startswith(f"error: {expected}")


def test_a_checkpoint_that_is_not_there_is_one_error_and_leaves_nothing(
    bench: Callable[..., tuple[int, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    status, folder = bench("checkpoint=native", "checkpoint.path=no/where")
    out, err = capfd.readouterr()
    assert (status, out, err.count("error: ")) == (1, "", 1)
    assert err.splitlines()[-1].startswith("error: checkpoint.path: no folder 'no/where'")
    assert not list(folder.iterdir())


def test_what_is_being_done_is_said_before_it_is_done(
    bench: Callable[..., tuple[int, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    status, folder = bench("policy=baseline", "steps=2,1", "rounds=1", "bench.warmup=0")
    said = [line.partition(" in ")[0] for line in capfd.readouterr().err.splitlines()]
    of_a_setting = ["building baseline", "built baseline", "timing"]
    assert status == 0
    assert said == [
        "denoise steps 2, lean form: running eager float32, for parity",
        *of_a_setting,
        "denoise steps 1, lean form: running eager float32, for parity",
        *of_a_setting,
        f"record: {folder}/bench.json",
    ]


def test_help_explains_keys_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m optim.bench KEY=VALUE,VALUE ...\n")
    groups = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith("  "))
    for group in ("policy", "optim/vision", "optim/prefix", "optim/denoise"):
        assert groups[group].startswith(", ".join(options(group)))
    keys = [word for word in groups if "=" in word]
    assert {f"bench.{option.name}" for option in fields(BenchConfig)} <= {key.split("=")[0] for key in keys}
    assert all(f"; short: {short}=" in said for short in SHORT)
    keys.remove("checkpoint.path=FOLDER")  # not of checkpoint=random_full
    assert len(read_arguments(keys)) == 2 * 3 * 2 * 2 * 2


def test_an_unknown_flag_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["policy=baseline", "--foo"])
    assert exit_.value.code == 2
    expected = "error: unknown flag --foo; `python -m optim.bench --help` explains keys and flags\n"
    assert capsys.readouterr().err == expected


def test_too_few_observations_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_requests(tmp_path / "few.npz", [request(0)])
    assert main([*SMALL, f"bench.observations={tmp_path}/few.npz", f"bench.output={tmp_path}"]) == 1
    expected = "error: bench.observations must hold at least 4 observations, got 1 in "
    assert capfd.readouterr().err.startswith(expected)


def test_records_and_reports_are_never_overwritten(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (done / "bench.json").read_bytes()
    assert main([*SMALL, f"bench.output={done}"]) == 1
    assert main([*SMALL, f"bench.report={done}/report.md"]) == 1
    err = capfd.readouterr().err.splitlines()
    assert err[0].endswith("already holds bench.json; choose a new folder")
    assert err[1].endswith("report.md already exists; choose a new file")
    assert (done / "bench.json").read_bytes() == before


@dataclass(frozen=True)
class MissesEverySecond(Backend):
    """The stage, refusing every second call."""

    def __call__(self, source: StageContext) -> CountedStage:
        calls = iter(range(1000))

        def engine(*args: Any) -> Any:
            if next(calls) % 2:
                raise StageMismatch("input 0 changed")
            return source.stage(*args)

        return CountedStage("misses", engine, details={"examples": len(source.examples), "parity": None})


def test_a_call_that_missed_its_engine_is_exit_status_1(
    bench: Callable[..., tuple[int, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    target = f"optim.prefix._target_={MissesEverySecond.__module__}.MissesEverySecond"
    status, folder = bench("policy=baseline", target, "optim.on_mismatch=fallback", "steps=1")
    assert status == 1
    [error] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert error.startswith("error: baseline (denoise steps 1, lean form, images 2, prompt tokens 7 to 11,")
    assert error.endswith("prefix served 6 of 11 calls and missed 5; these times are not its engine's")
    record = json.loads((folder / "bench.json").read_text())
    prefix = record["settings"][0]["policies"][0]["engagement"]["prefix"]
    assert [prefix[key] for key in ("backend", "calls", "misses", "expected")] == ["misses", 6, 5, 11]
    assert prefix["details"]["examples"] == OBSERVATIONS  # both lengths of prompt


def test_without_a_fallback_a_miss_is_one_line(
    bench: Callable[..., tuple[int, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    target = f"optim.prefix._target_={MissesEverySecond.__module__}.MissesEverySecond"
    assert bench("policy=baseline", target)[0] == 1
    *_, error = capfd.readouterr().err.splitlines()
    assert error.startswith("error: policy baseline: input 0 changed; optim.on_mismatch=fallback would")
