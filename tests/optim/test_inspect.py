"""Inspect shows shapes, engines and tokens without a GPU, also of policies whose backends need one."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from eval.app.command import CONF
from eval.records.observations import save_requests
from optim.inspect import Tokens, argument_rows, backend_of, count_tokens, engine_rows, main, token_rows
from policies.pi05.policy import Pi05Policy
from tests.optim.small import eager_policy, random_checkpoint, random_request

EAGER, FP8 = ("Eager", "", False), ("Fp8", "linears=all", True)


SHORT = random_request(0, "open the drawer")
LONG = random_request(1, "put the bowl on the stove and open the drawer")


def policy(form: str) -> Pi05Policy:
    return eager_policy(random_checkpoint(), form)


@pytest.fixture
def inspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[str, str]]]:
    """The command line with these arguments; what it prints on stdout and stderr."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    save_requests(tmp_path / "some.npz", [SHORT, LONG])
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        fixed = ["checkpoint=random_small", "inspect.observations=some.npz", "policy.device=cpu"]
        monkeypatch.setattr(sys, "argv", ["inspect", *fixed, *arguments])
        main()
        return capfd.readouterr()

    yield run
    GlobalHydra.instance().clear()
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lean_tokens_are_all_valid_and_full_ones_say_what_is_masked_and_padded() -> None:
    tokens = policy("lean").preprocess([SHORT.observation], "lean").tokens_BT.shape[1]
    lean, full = (
        count_tokens(acting, acting.preprocess([SHORT.observation], acting.form))
        for acting in (policy("lean"), policy("full"))
    )
    assert lean == [
        Tokens("base_0_rgb", 256, 0, 0),
        Tokens("left_wrist_0_rgb", 256, 0, 0),
        Tokens("prompt", tokens, 0, 0),
    ]
    assert full == [
        Tokens("base_0_rgb", 256, 0, 0),
        Tokens("left_wrist_0_rgb", 256, 0, 0),
        Tokens("right_wrist_0_rgb", 0, 256, 0),
        Tokens("prompt", tokens, 0, 200 - tokens),
    ]
    assert sum(part.total for part in full) == 968


def test_help_explains_what_inspect_reads_and_nothing_else(
    inspect: Callable[..., tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        inspect("--help")
    assert exit_.value.code == 0
    said = capfd.readouterr().out
    keys = [line.split()[0] for line in said.splitlines() if line.startswith("  ") and "=" in line.split()[0]]
    assert {"inspect.observations=FILE.npz", "policy.form=full"} <= set(keys)
    assert not any(word in said for word in ("runner", "tracking", "resume", "video", "shard"))
    with initialize_config_dir(CONF, version_base="1.3"):
        compose("inspect", keys)  # Hydra refuses a key that is not there


def test_sums_are_those_of_the_shortest_and_the_longest_prompt() -> None:
    rows = {row[0]: row[1:] for row in token_rows(policy("lean"), {"long": LONG, "short": SHORT})}
    short, long = (int(rows[name][0]) for name in ("short", "long"))
    assert short < long
    assert rows["all with the shortest prompt"] == (str(512 + short), "0", "0", str(512 + short))
    assert rows["all with the longest prompt"] == (str(512 + long), "0", "0", str(512 + long))


def test_shapes_are_shown_under_the_names_of_the_arguments() -> None:
    acting = policy("full")
    stages = random_checkpoint().stages
    examples = acting.example_inputs([[SHORT]])
    rows = argument_rows(stages, {name: calls[0] for name, calls in examples.items()})
    assert [row[:3] for row in rows if row[0] == "prefix"] == [
        ("prefix", "in", "image_tokens_BQW"),
        ("prefix", "in", "image_mask_BN"),
        ("prefix", "in", "tokens_BT"),
        ("prefix", "in", "token_mask_BT"),
        ("prefix", "out", "keys_LBGPD"),
        ("prefix", "out", "values_LBGPD"),
        ("prefix", "out", "prefix_mask_BP"),
    ]
    assert rows[0] == ("vision", "in", "images_BNCHW", "1 x 3 x 3 x 224 x 224", "float32", "cpu")
    assert rows[-1] == ("denoise", "out", "actions_BHA", "1 x 10 x 32", "float32", "cpu")


@pytest.mark.parametrize(("form", "engines"), [("lean", "2"), ("full", "1")])
def test_an_engine_is_built_for_each_length_unless_prompts_are_padded(form: str, engines: str) -> None:
    examples = policy(form).example_inputs([[SHORT], [LONG], [SHORT]])
    rows = engine_rows(examples, {"vision": FP8, "prefix": FP8, "denoise": EAGER})
    assert rows == [
        ("vision", "Fp8", "linears=all", "1", "1"),
        ("prefix", "Fp8", "linears=all", engines, engines),
        ("denoise", "Eager", "-", "any", engines),
    ]


def test_a_backend_is_described_without_being_built() -> None:
    assert backend_of("vision", {"_target_": "optim.eager.Eager"}) == ("Eager", "", False)
    options = {"_target_": "optim.fp8.Fp8", "linears": "mlp"}
    assert backend_of("vision", options) == ("Fp8", "linears=mlp", True)


def test_all_tables_are_printed_and_nothing_is_written(
    inspect: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    out, err = inspect("policy=baseline")
    assert err.splitlines() == [
        "reading the weights of checkpoint random_small",
        "running 8 observations through the stages",  # the 10 prompts have 8 lengths
    ]
    assert out.startswith("baseline, RANDOM WEIGHTS (small), lean form\n")
    for words in ("images_BNCHW", "1 x 2 x 3 x 224 x 224", "Engines for the tasks", "prompt of task 9"):
        assert words in out
    assert "note:" not in out
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]


def test_without_a_file_it_says_that_the_images_are_of_the_first_task(
    inspect: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optim.inspect.prepare", lambda: None)
    monkeypatch.setattr("optim.inspect.example_requests", lambda *_: [SHORT, LONG])
    _, err = inspect("policy=baseline", "inspect.observations=null")
    assert "starting the simulator, for the first task's images; every task gives its words" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_a_backend_that_cannot_run_here_is_a_note_and_the_rest_is_shown(
    inspect: Callable[..., tuple[str, str]],
) -> None:
    out, _ = inspect("policy=native_fp8")
    assert "prompt of task 9" in out
    [note] = [line for line in out.splitlines() if line.startswith("note: ")]
    assert note.startswith("note: policy=native_fp8 cannot run here: it needs an NVIDIA GPU, ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["policy=nope"], "policy must be one of auto, baseline, "),
        (
            ["policy=oracle"],
            "policy.device is no option of this policy; choose one that has it, as policy=baseline",
        ),
        (["inspect.observations=no.npz"], "no observations no.npz (looked at "),
        (["tracking.group=hf_abcdefghijklmnopqrstuvwxyz01234567"], "tracking.group "),
        (
            ["optim.vision=eager"],
            "optim.vision must be a backend, chosen with a slash as in optim/vision=eager",
        ),
        (["optim.vision._target_=optim.abacus.Abacus"], "optim.vision refused its options: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    inspect: Callable[..., tuple[str, str]],
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        inspect(*arguments)
    out, err = capfd.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {expected}")
