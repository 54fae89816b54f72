"""Replay on the CPU with the small random network: what is equal, what departs and where, what is refused."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console

from eval.records.recording import OBSERVATIONS_FILE, save_recording
from eval.records.writer import RunWriter
from eval.render.tables import Table
from eval.replay.cli import OBSERVATIONS, main
from eval.replay.parity import euler_path
from eval.replay.subjects import on_top
from optim.base import Backend, CountedStage, StageContext, StageMismatch
from policies.files import ROOT
from policies.pi05.denoise import Denoise
from policies.pi05.random_weights import TOKENIZER_PATH
from tests.optim.fp8_on_cpu import Fp8OnCpu
from tests.optim.small import eager_policy, random_checkpoint, random_request

WriteRun = Callable[..., Path]
STEPS = 3


@dataclass(frozen=True)
class Refusing(Backend):
    """Serves no call: what it was built for never comes."""

    needs_examples: ClassVar[bool] = False

    def __call__(self, source: StageContext) -> CountedStage:
        def engine(*args: object) -> None:
            raise StageMismatch("input 0 changed")

        return CountedStage("refusing", engine)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write what a run of the small random network leaves that replay reads; return its folder."""

    def write(*, overrides: tuple[str, ...] = (), **about: Any) -> Path:
        folder = tmp_path / "run"
        policy = eager_policy(random_checkpoint(denoise_steps=STEPS))
        requests = [random_request(0), random_request(1, "open the top drawer of the wooden cabinet")]
        save_recording(
            folder / OBSERVATIONS_FILE,
            [(request, policy.infer([request])[0].actions_HJ) for request in requests],
        )
        with RunWriter(folder) as writer:
            writer.write_run(
                {
                    "overrides": [
                        "checkpoint=random_small",
                        f"denoise.steps={STEPS}",
                        "protocol=smoke",
                        "tracking=none",
                        "video=all",
                        *overrides,
                    ],
                    "policy": policy.provenance() | about,
                }
            )
        return folder

    return write


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Return the exit status and what --json printed."""
    status = main([*map(str, arguments), "--json"])
    printed = capsys.readouterr().out
    return status, json.loads(printed, parse_constant=pytest.fail) if printed else {}


def backend(stage: str, target: type[Backend], **options: float) -> list[str]:
    """Return the overrides that choose a backend of the tests."""
    return [
        f"optim.{stage}._target_={target.__module__}.{target.__qualname__}",
        *(f"+optim.{stage}.{key}={value}" for key, value in options.items()),
    ]


def test_the_same_policy_is_equal_in_every_view(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    status, replayed = outcome(capsys, write_run(), "policy=baseline", "--tolerance", "1")
    assert status == 0
    worst = replayed["worst"]
    assert worst["actions"] == {"rel_error": 0.0, "cosine": 1.0, "max_abs": 0.0}
    assert worst["recorded"]["max_abs"] < 1e-6  # there and back through the simulator's units
    assert [worst["stages"][stage]["max_abs"] for stage in ("vision", "prefix", "denoise")] == [0.0] * 3
    assert [step["max_abs"] for step in worst["steps"]] == [0.0] * STEPS
    assert worst["departs"] is None
    assert [of["episode"] for of in replayed["observations"]] == [
        "libero_spatial-task0-episode0-seed7",
        "libero_spatial-task0-episode1-seed7",
    ]


def test_a_setting_with_a_path_of_another_checkout_is_the_same(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = f"checkpoint.tokenizer={TOKENIZER_PATH}"
    said = {"value": str(TOKENIZER_PATH.relative_to(ROOT)), "from": "checkpoint.tokenizer"}
    folder = write_run(overrides=(chosen,), settings={"tokenizer": said})
    assert outcome(capsys, folder, "policy=baseline")[0] == 0
    run = json.loads((folder / "run.json").read_text())
    run["policy"]["settings"]["tokenizer"]["value"] = "other.model"
    (folder / "run.json").write_text(json.dumps(run))
    assert main([str(folder), "policy=baseline", "--json"]) != 0
    assert "settings of the reference must be" in capsys.readouterr().err


def test_another_form_is_the_same_policy(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    status, replayed = outcome(capsys, write_run(), "policy=baseline", "policy.form=full")
    assert status == 0
    assert replayed["worst"]["actions"]["rel_error"] < 1e-4
    assert all(step["rel_error"] < 1e-4 for step in replayed["worst"]["steps"])
    assert (replayed["reference"]["form"], replayed["policy"]["form"]) == ("lean", "full")


def test_an_error_shows_in_the_stage_that_makes_it_and_grows_over_the_steps(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [write_run(), "policy=baseline", *backend("prefix", Fp8OnCpu), "--tolerance", "0.9"]
    status, replayed = outcome(capsys, *arguments)
    stages, steps = replayed["worst"]["stages"], [step["rel_error"] for step in replayed["worst"]["steps"]]
    assert status == 0
    assert stages["prefix"]["rel_error"] > 1e-3
    assert stages["vision"]["rel_error"] == stages["denoise"]["rel_error"] == 0.0
    assert 0 < steps[0] < steps[-1]
    assert replayed["engagement"]["prefix"]["backend"] == "fp8_on_cpu"


def test_scales_that_are_off_are_no_parity(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run()
    errors = []
    for factor in (1, 2, 16):
        damaged = backend("prefix", Fp8OnCpu, factor=factor)
        status, replayed = outcome(capsys, folder, "policy=baseline", *damaged)
        errors.append(replayed["worst"]["stages"]["prefix"]["rel_error"])
    assert errors[0] < errors[1] < errors[2]
    assert status == 1
    assert not replayed["passed"]


def test_the_tolerance_is_inclusive_and_decides(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [write_run(), "policy=baseline", "policy.precision=bfloat16"]
    _, replayed = outcome(capsys, *arguments)
    cosine = replayed["worst"]["actions"]["cosine"]
    assert 0.9 < cosine < 1.0
    assert replayed["policy"]["dtype"] == "bfloat16"
    assert replayed["reference"]["dtype"] == "float32"
    assert outcome(capsys, *arguments, "--tolerance", repr(cosine))[0] == 0
    above = torch.nextafter(torch.tensor(cosine, dtype=torch.float64), torch.tensor(2.0)).item()
    assert outcome(capsys, *arguments, "--tolerance", repr(above))[0] == 1


def test_with_other_denoise_steps_only_the_ends_are_compared(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run()
    status, replayed = outcome(capsys, folder, "denoise.steps=1")
    assert status == 1
    assert replayed["worst"]["steps"] == []
    assert replayed["worst"]["stages"]["prefix"]["rel_error"] == 0.0
    main([str(folder), "denoise.steps=1"])
    assert "the numbers of denoise steps differ" in capsys.readouterr().out


def test_the_first_step_that_departs_is_named(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [write_run(), "policy=baseline", *backend("prefix", Fp8OnCpu, factor=16)]
    _, replayed = outcome(capsys, *arguments)
    cosines = [step["cosine"] for step in replayed["worst"]["steps"]]
    between = repr((cosines[1] + cosines[0]) / 2)
    assert cosines[0] > cosines[1]
    _, replayed = outcome(capsys, *arguments, "--tolerance", between)
    assert replayed["worst"]["departs"] == 2


def test_a_backend_that_falls_back_has_no_parity_and_one_that_refuses_ends_it(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [write_run(), "policy=baseline", *backend("vision", Refusing)]
    status, replayed = outcome(capsys, *arguments, "optim.on_mismatch=fallback")
    assert status == 1
    assert replayed["worst"]["actions"]["cosine"] == 1.0
    assert replayed["problems"] == ["vision: refusing served 0 calls and missed 4"]
    assert main([str(argument) for argument in arguments]) == 1
    assert "input 0 changed" in capsys.readouterr().err


def test_the_text_names_weights_stages_and_verdict(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_run()), "policy=baseline"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("*** RANDOM WEIGHTS (small) ***")
    assert "prefix (eager), the reference's inputs 1.000000" in text
    assert "x after step 3 of 3, eager steps 1.000000" in text
    assert "PARITY: cosine 1.000000 at worst" in text


def test_the_name_of_an_observation_stays_on_one_line() -> None:
    console = Console(file=io.StringIO(), width=100)
    name = "libero_spatial-task0-episode49-seed12345"
    cells = (name, "100", "-0.999312", "1.23e-05", "0.00123", "1.23e-05")
    console.print(*Table(OBSERVATIONS, [cells]).console())
    assert any(all(cell in line for cell in cells) for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize(
    ("arguments", "about", "reason"),
    [
        (["policy=abacus"], {}, "policy must be one of"),
        (["policy=oracle"], {}, "policy=oracle has no network to replay"),
        (["policy=baseline", "polcy.form=full"], {}, "unknown key polcy"),
        (["checkpoint.seed=3"], {}, "weights_sha256 of the policy must be"),
        ([], {"weights_sha256": "f" * 64}, "weights_sha256 of the reference must be"),
        ([], {"denoise_steps": 10}, "denoise_steps of the reference must be 10 as in run.json, got 3"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_2(
    write_run: WriteRun,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    about: dict[str, Any],
    reason: str,
) -> None:
    assert main([str(write_run(**about)), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert reason in line


def test_runs_without_a_network_or_without_observations_are_refused(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "run.json is missing" in capsys.readouterr().err
    folder = write_run()
    (folder / OBSERVATIONS_FILE).unlink()
    assert main([str(folder)]) == 2
    assert "record_observations=16" in capsys.readouterr().err
    (folder / "run.json").write_text('{"overrides": ["policy=oracle"], "policy": {}}')
    assert main([str(folder)]) == 2
    assert "there is no reference" in capsys.readouterr().err


def test_a_chosen_policy_replaces_the_runs_recipe_and_keeps_the_rest() -> None:
    recorded_overrides = [
        "checkpoint=native",
        "checkpoint.path=there",
        "policy=trt_fp8",
        "policy.form=full",
        "policy.prompt_multiple=8",
        "policy.precision=float32",
        "optim/vision=compile",
        "optim.scales=file",
        "denoise.steps=3",
    ]
    assert on_top(recorded_overrides, ["policy=baseline"], "policy.precision=bfloat16") == [
        "checkpoint=native",
        "checkpoint.path=there",
        "policy.form=full",
        "denoise.steps=3",
        "policy.precision=bfloat16",
        "policy=baseline",
    ]
    assert on_top(
        recorded_overrides,
        ["optim/vision=eager", "denoise.steps=1", "policy.precision=bfloat16"],
        "policy.precision=x",
    ) == [
        *recorded_overrides[:5],
        "optim.scales=file",
        "optim/vision=eager",
        "denoise.steps=1",
        "policy.precision=bfloat16",
    ]


def test_the_path_ends_in_what_the_stage_returns_and_starts_after_one_step() -> None:
    checkpoint = random_checkpoint(denoise_steps=STEPS)
    denoise = checkpoint.stages["denoise"]
    assert isinstance(denoise, Denoise)
    args = eager_policy(checkpoint).example_inputs([[random_request(0)]])["denoise"][0]
    with torch.no_grad():
        path = euler_path(denoise, args)
        assert torch.equal(path[-1], denoise(*args))
    assert len(path) == STEPS
    assert not denoise.action_in_proj._forward_pre_hooks
    noise = args[0]
    assert noise is not None
    assert not torch.equal(path[0], noise)
