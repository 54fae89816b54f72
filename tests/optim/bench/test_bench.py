"""A bench times policies side by side, counts their calls, compares them with eager float32."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console, RenderableType

from eval.config.groups import options
from eval.config.schema import ConfigError
from eval.records.observations import save_requests
from optim.base import Backend, CountedStage, StageContext, StageMismatch
from optim.bench.cli import main
from optim.bench.config import SHORT, BenchConfig, read_arguments
from optim.bench.measure import bench_setting
from optim.bench.reshape import reshape
from optim.bench.roofline import Ceiling, floor_ms, work
from optim.bench.tables import components, problems, render_setting, report, title
from optim.bench.tables import main as table_main
from optim.core.actions import infer_once
from optim.eager import Eager
from policies.base import Request
from policies.pi05.preprocess import Preprocess
from tests.optim.small import eager_policy, random_checkpoint, random_request

OBSERVATIONS, ROUNDS, WARMUP = 4, 5, 2
SMALL = ("checkpoint=random_small", "policy.device=cpu")


def request(i: int) -> Request:
    return random_request(i, "pick up the black bowl" + " next to the plate" * (i % 2))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Observations of two prompt lengths."""
    path = tmp_path_factory.mktemp("observations") / "some.npz"
    save_requests(path, [request(i) for i in range(OBSERVATIONS)])
    return path


@pytest.fixture(scope="module")
def bench(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, Path]]:
    """Run a bench on these observations; its exit status and its folder."""

    def run(*arguments: str) -> tuple[int, Path]:
        GlobalHydra.instance().clear()
        folder = tmp_path_factory.mktemp("bench")
        sizes = (f"bench.rounds={ROUNDS}", f"bench.warmup={WARMUP}", f"bench.observations={file}")
        return main([*SMALL, *sizes, f"bench.output={folder}", *arguments]), folder

    return run


@pytest.fixture(scope="module")
def done(bench: Callable[..., tuple[int, Path]]) -> Path:
    """The folder of a bench of two policies at two numbers of steps, with a report."""
    file = "bench.report=${bench.output}/report.md"
    status, folder = bench("policy=baseline", "policy.precision=float32,bfloat16", "steps=2,1", file)
    assert status == 0
    return folder


@pytest.fixture
def record(done: Path) -> dict[str, Any]:
    return json.loads((done / "bench.json").read_text())


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return random_checkpoint().preprocess()


def reshaped(preprocess: Preprocess, views: int | None, prompt_tokens: int | None) -> Preprocess:
    policy = eager_policy(random_checkpoint())
    return reshape(replace(policy, preprocess=preprocess), views, prompt_tokens).preprocess


def text(renderable: RenderableType) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_settings_come_in_the_order_of_the_command_line_each_with_all_policies(
    record: dict[str, Any],
) -> None:
    assert [setting["overrides"][-2:][0] for setting in record["settings"]] == [
        "denoise.steps=2",
        "denoise.steps=1",
    ]
    for setting in record["settings"]:
        assert [policy["label"] for policy in setting["policies"]] == [
            "baseline precision=float32",
            "baseline precision=bfloat16",
        ]
        assert [policy["facts"]["dtype"] for policy in setting["policies"]] == ["float32", "bfloat16"]


def test_policies_take_turns_and_every_round_has_one_observation(record: dict[str, Any]) -> None:
    first, second = (policy["samples"] for policy in record["settings"][0]["policies"])
    assert len(first) == len(second) == ROUNDS
    assert [sample["position"] for sample in first] == [0, 1, 0, 1, 0]
    assert [sample["position"] for sample in second] == [1, 0, 1, 0, 1]
    assert [sample["observation"] for sample in first] == [0, 1, 2, 3, 0]
    assert [sample["observation"] for sample in second] == [0, 1, 2, 3, 0]


def test_every_sample_has_all_stages_within_the_whole(record: dict[str, Any]) -> None:
    for policy in record["settings"][0]["policies"]:
        for sample in policy["samples"]:
            assert set(sample["stage_ms"]) == {"vision", "prefix", "denoise"}
            assert 0 < sum(sample["stage_ms"].values()) < sample["infer_ms"]


def test_every_call_is_counted_parity_and_warm_up_included(record: dict[str, Any]) -> None:
    for policy in record["settings"][0]["policies"]:
        for engaged in policy["engagement"].values():
            counts = (engaged["calls"], engaged["expected"], engaged["misses"])
            assert counts == (OBSERVATIONS + WARMUP + ROUNDS,) * 2 + (0,)
    assert problems(record) == []


def test_eager_float32_has_exact_parity_and_bfloat16_has_not(record: dict[str, Any]) -> None:
    exact, rounded = (policy["parity"] for policy in record["settings"][0]["policies"])
    assert exact == {
        "reference": "eager float32",
        "observations": OBSERVATIONS,
        "rel_error": 0.0,
        "cosine": 1.0,
        "max_abs": 0.0,
        "max_abs_action": 0.0,
    }
    assert 0 < rounded["rel_error"] < 0.02
    assert 0.999 < rounded["cosine"] < 1
    assert rounded["max_abs"] > 0
    assert rounded["max_abs_action"] > 0


def test_speed_up_is_against_the_first_policy(record: dict[str, Any]) -> None:
    first, second = record["settings"][0]["policies"]
    for sample in second["samples"]:
        sample["infer_ms"] = 10.0
        sample["stage_ms"] = {"vision": 1.0, "prefix": 2.0, "denoise": 4.0}
    for sample in first["samples"]:
        sample["infer_ms"] = 30.0
        sample["stage_ms"] = {"vision": 1.0, "prefix": 4.0, "denoise": 16.0}
    second["floor_ms"] = {"vision": 0.5, "prefix": 0.5, "denoise": 0.4}
    rows = {
        part.name: (part.stats.n, part.stats.p50_ms, part.speedup, part.share)
        for part in components(second, first)
    }
    assert rows == {
        "vision": (ROUNDS, 1.0, 1.0, 0.5),
        "prefix": (ROUNDS, 2.0, 2.0, 0.25),
        "denoise": (ROUNDS, 4.0, 4.0, 0.1),
        "all stages": (ROUNDS, 7.0, 3.0, pytest.approx(0.2)),
        "host to host": (ROUNDS, 10.0, 3.0, pytest.approx(0.14)),
    }
    assert {(part.speedup, part.share) for part in components(first, first)} == {(1.0, None)}
    first["floor_ms"] = {"vision": 0.5}  # no ceiling for the other stages, hence none for the sums
    assert [part.share for part in components(first, first)] == [0.5, None, None, None, None]


def test_a_machine_without_a_gpu_has_no_memory_and_no_roofline(record: dict[str, Any]) -> None:
    policy = record["settings"][0]["policies"][0]
    assert (policy["peak_bytes"], policy["floor_ms"]) == (None, None)


def test_the_record_alone_gives_the_same_tables_and_report_again(
    done: Path, record: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    again = json.loads(json.dumps(record))
    assert text(render_setting(again["settings"][0])) == text(render_setting(record["settings"][0]))
    assert (done / "report.md").read_text() == report(again)
    assert table_main([str(done / "bench.json")]) == 0
    assert title(record["settings"][1]).split(", prompt")[0] in capfd.readouterr().out


def test_a_report_says_what_results_must_say(done: Path) -> None:
    words = (done / "report.md").read_text()
    for item in (
        "RANDOM WEIGHTS (small)",
        "- Command: `",
        "- Commit: ",
        "- Hardware: ",
        "torch ",
        "SHA-256 ",
    ):
        assert item in words
    assert "| baseline precision=bfloat16 | denoise | eager | 11 | 11 | 0 | - |" in words
    assert words.count("\n## denoise steps ") == 2
    assert f"- Observations: {OBSERVATIONS} of libero_spatial tasks 0 (file some.npz)" in words


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
        (["policy=baseline,nope"], "policy must be one of baseline, "),
        (["policy=oracle"], "policy must be one with stages to time, got 'oracle'; choose policy=baseline"),
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
    assert len(read_arguments(keys)) == 2 * 2 * 2 * 2


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


@dataclass(frozen=True)
class SaysFp8(Backend):
    """The stage, which claims to be quantised."""

    needs_examples: ClassVar[bool] = False

    def __call__(self, source: StageContext) -> CountedStage:
        return CountedStage("says_fp8", source.stage, details={"precision": "fp8"})


def test_a_floor_is_of_each_stages_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = Ceiling(1e9, {"bfloat16": 1e9, "fp8": 2e9})
    monkeypatch.setattr("optim.bench.measure.find_ceiling", lambda gpu: ceiling)
    words = [*SMALL, "policy.precision=bfloat16", "rounds=1", "bench.warmup=0", "steps=2", "prompt_tokens=20"]
    [setting] = read_arguments(words)
    [row] = setting.rows
    backends = {"vision": SaysFp8(), "prefix": Eager(), "denoise": Eager()}
    requests = [request(i) for i in range(2)]
    record = bench_setting(setting, {row.overrides: backends}, requests, row.config.bench)
    stages = work(random_checkpoint().dims, images=2, prefix_tokens=532, steps=2)
    precisions = {"vision": "fp8", "prefix": "bfloat16", "denoise": "bfloat16"}
    assert record["policies"][0]["floor_ms"] == pytest.approx(
        {name: floor_ms(amount, ceiling, precisions[name]) for name, amount in stages.items()}
    )


def test_parity_is_with_float32_even_where_no_policy_is() -> None:
    words = [*SMALL, "policy.precision=bfloat16", "rounds=1", "bench.warmup=0", "steps=1"]
    [setting] = read_arguments(words)
    [row] = setting.rows
    backends = dict.fromkeys(("vision", "prefix", "denoise"), Eager())
    record = bench_setting(setting, {row.overrides: backends}, [request(0)], row.config.bench)
    assert 0 < record["policies"][0]["parity"]["rel_error"] < 0.02


def test_without_a_fallback_a_miss_is_one_line(
    bench: Callable[..., tuple[int, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    target = f"optim.prefix._target_={MissesEverySecond.__module__}.MissesEverySecond"
    assert bench("policy=baseline", target)[0] == 1
    *_, error = capfd.readouterr().err.splitlines()
    assert error.startswith("error: policy baseline: input 0 changed; optim.on_mismatch=fallback would")


def test_a_setting_asks_for_views_and_tokens(record: dict[str, Any]) -> None:
    assert record["settings"][0]["policies"][0]["inputs"] == [
        {"images": 2, "image_tokens": 512, "prompt_tokens": tokens} for tokens in (7, 11, 7, 11)
    ]
    [setting] = read_arguments(
        [*SMALL, "views=3", "prompt_tokens=20", "steps=1", "rounds=1", "bench.warmup=0"]
    )
    [row] = setting.rows
    requests = [request(i) for i in range(2)]
    backends = dict.fromkeys(("vision", "prefix", "denoise"), Eager())
    record = bench_setting(setting, {row.overrides: backends}, requests, row.config.bench)
    assert record["policies"][0]["inputs"] == [{"images": 3, "image_tokens": 768, "prompt_tokens": 20}] * 2
    assert record["policies"][0]["parity"]["rel_error"] == 0.0


@pytest.mark.parametrize("form", ["lean", "full"])
@pytest.mark.parametrize(("views", "tokens"), [(1, 5), (2, 20), (3, 200)])
def test_reshaped_inputs_are_real_ones_in_turn_without_masks(
    preprocess: Preprocess, form: str, views: int, tokens: int
) -> None:
    observation = request(1).observation
    real = preprocess([observation], "lean")
    inputs = reshaped(preprocess, views, tokens)([observation], form)
    assert (inputs.image_mask_BN, inputs.token_mask_BT) == (None, None)
    assert inputs.images_BNCHW.shape[:2] == (1, views)
    assert inputs.tokens_BT.shape == (1, tokens)
    for i in range(views):
        assert torch.equal(inputs.images_BNCHW[:, i], real.images_BNCHW[:, i % 2])
    prompt = real.tokens_BT[0].tolist()
    assert inputs.tokens_BT[0].tolist() == [prompt[i % len(prompt)] for i in range(tokens)]


@pytest.mark.parametrize("form", ["lean", "full"])
def test_what_is_not_asked_for_stays_as_the_form_has_it(preprocess: Preprocess, form: str) -> None:
    observation = request(0).observation
    plain = preprocess([observation], form)
    views_alone = reshaped(preprocess, 2, None)([observation], form)
    tokens_alone = reshaped(preprocess, None, 8)([observation], form)
    assert torch.equal(views_alone.tokens_BT, plain.tokens_BT)
    assert (views_alone.token_mask_BT is None) == (form == "lean")
    assert torch.equal(tokens_alone.images_BNCHW, plain.images_BNCHW)
    assert (tokens_alone.image_mask_BN is None) == (form == "lean")


def test_an_action_for_parity_is_the_one_that_infer_returns() -> None:
    policy = eager_policy(random_checkpoint())
    [chunk] = policy.infer([request(3)])
    actions, _ = infer_once(policy, request(3))
    assert np.array_equal(actions.in_units_HJ, chunk.actions_HJ)
    assert actions.normalised_HA.shape == (10, 32)
