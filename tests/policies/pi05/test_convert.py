"""Conversion of JAX checkpoints: every form gives the same tensors, a folder appears whole or not at all."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from eval import cli
from eval.config.compose import configure
from eval.records.reader import read_run
from policies.files import ROOT
from policies.pi05 import convert
from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.convert import convert_checkpoint, main
from policies.pi05.dims import Pi05Dims
from policies.pi05.parity import compare
from policies.pi05.random_weights import TOKENIZER_PATH
from policies.pi05.weight_files import file_sha256
from policies.text import shell_command
from tests.policies.pi05.conftest import FIXTURE, STATS
from tests.policies.pi05.jax_folder import BF16, FORMS, Arrays, to_jax, write_arrays, write_norm_stats

MakeConfig = Callable[..., CheckpointConfig]
UNUSED = "paligemma_with_expert.gemma_expert.lm_head.weight"  # in openpi's PyTorch network, not in JAX's
KERNEL = "PaliGemma/llm/layers/attn/q_einsum_1/w"


@pytest.fixture(scope="module")
def tensors() -> dict[str, NDArray[np.float32]]:
    """openpi's small network, in its PyTorch layout."""
    loaded = load_numpy(FIXTURE / "model.safetensors")
    del loaded[UNUSED]
    return loaded


@pytest.fixture(scope="module")
def arrays(tensors: dict[str, NDArray[np.float32]]) -> Arrays:
    """The same network as JAX has it."""
    dims = Pi05Dims.from_native(json.loads((FIXTURE / "config.json").read_text()), "fixture")
    return to_jax(tensors, dims)


@pytest.fixture
def step(tmp_path: Path, arrays: Arrays) -> Path:
    """A step's folder of openpi's trainer."""
    folder = tmp_path / "29999"
    write_arrays(folder / "params", arrays, "nnx")
    write_norm_stats(folder, STATS)
    return folder


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["convert", *map(str, words)])
        return main()

    return run


@pytest.mark.parametrize("form", FORMS)
def test_every_form_converts_to_equal_tensors(
    form: str, tensors: dict[str, NDArray[np.float32]], arrays: Arrays, tmp_path: Path
) -> None:
    write_arrays(tmp_path / "step" / "params", arrays, form)
    done = convert_checkpoint(tmp_path / "step", tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert converted.keys() == tensors.keys()
    for key, tensor in converted.items():
        expected = torch.from_numpy(tensors[key])
        dtype = torch.bfloat16 if form == "bf16" else torch.float32
        assert tensor.dtype == dtype, key
        assert torch.equal(tensor, expected.to(dtype)), key
    assert (done.num_arrays, done.num_tensors) == (len(arrays), len(tensors))
    assert done.weights_sha256 == file_sha256(tmp_path / "out" / "model.safetensors")


def test_the_same_weights_give_the_same_file_whatever_the_form(arrays: Arrays, tmp_path: Path) -> None:
    hashes = set()
    for form in ("tree", "nnx", "plain"):
        write_arrays(tmp_path / form / "params", arrays, form)
        hashes.add(convert_checkpoint(tmp_path / form, tmp_path / f"{form}_out").weights_sha256)
    assert len(hashes) == 1


def test_a_converted_network_computes_what_openpi_recorded(step: Path, tmp_path: Path) -> None:
    convert_checkpoint(step / "params", tmp_path / "out")
    (tmp_path / "out" / "parity.safetensors").write_bytes((FIXTURE / "parity.safetensors").read_bytes())
    results = compare(tmp_path / "out")
    assert len(results) > 10
    assert max(result.max_rel for result in results) <= 1e-5


def test_a_network_of_other_sizes_gets_a_native_config_with_all_of_them(step: Path, tmp_path: Path) -> None:
    done = convert_checkpoint(step, tmp_path / "out", horizon=16)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    fixture = json.loads((FIXTURE / "config.json").read_text())
    assert written == {key: fixture[key] for key in written} | {"action_horizon": 16}
    assert done.layout == "native"
    assert (done.dims.vision.heads, done.dims.prefix.head_dim, done.dims.image_size) == (4, 32, 224)


def test_a_network_of_published_sizes_loads_as_openpi(
    openpi: Any, step: Path, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policies.pi05 import dims  # the fixture `openpi` has shrunk the variants

    monkeypatch.setattr(convert, "GEMMA_VARIANTS", dims.GEMMA_VARIANTS)
    done = convert_checkpoint(step, tmp_path / "out", horizon=10)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == json.loads((openpi.path / "config.json").read_text())
    assert done.layout == "openpi"
    options = {"layout": "openpi", "tokenizer": str(TOKENIZER_PATH)}
    loaded, expected = (
        load_checkpoint(config(path=str(path), **options)) for path in (tmp_path / "out", openpi.path)
    )
    assert loaded.dims == expected.dims
    assert loaded.norm_stats.sha256 == expected.norm_stats.sha256
    for stage, module in expected.stages.items():
        state = loaded.stages[stage].state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())


def test_arrays_of_both_precisions_keep_theirs(arrays: Arrays, tmp_path: Path) -> None:
    params = tmp_path / "step" / "params"
    narrow = {path: array for path, array in arrays.items() if "embedd" in path}
    write_arrays(params, {path: array for path, array in arrays.items() if path not in narrow}, "plain")
    write_arrays(tmp_path / "narrow", narrow, "plain", dtype=BF16)
    for folder in (tmp_path / "narrow").glob("params.*"):
        folder.rename(params / folder.name)
    convert_checkpoint(tmp_path / "step", tmp_path / "out")
    dtypes = {key: tensor.dtype for key, tensor in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert {key for key, dtype in dtypes.items() if dtype == torch.bfloat16} == {
        "paligemma_with_expert.paligemma.lm_head.weight",
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.patch_embedding.bias",
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.position_embedding.weight",
    }


def test_the_command_prints_hashes_and_a_command_that_loads_the_result(
    step: Path, tmp_path: Path, run_main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(step / "params", tmp_path / "out", "--horizon", 12) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where there is no terminal
    assert f"sha256 of model.safetensors: {file_sha256(tmp_path / 'out' / 'model.safetensors')}" in out
    for name in ("manifest.ocdbt", "_METADATA"):
        path = step / "params" / name
        assert f"sha256 of {path}: {file_sha256(path)}" in out
    stats = tmp_path / "out" / "assets" / "physical-intelligence" / "libero" / "norm_stats.json"
    assert json.loads(stats.read_text()) == {"norm_stats": STATS}
    assert out.splitlines()[-1].endswith(
        f": {shell_command('eval')} checkpoint=native checkpoint.path={tmp_path / 'out'} "
        f"checkpoint.norm_stats={stats} checkpoint.horizon=12 checkpoint.tokenizer=FILE"
    )


def test_without_norm_stats_the_result_says_that_a_run_needs_them(
    arrays: Arrays, tmp_path: Path, run_main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_arrays(tmp_path / "params", arrays)
    assert run_main(tmp_path, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "a run needs checkpoint.norm_stats=FILE" in out
    assert "checkpoint.norm_stats=FILE checkpoint.tokenizer=FILE" in out.splitlines()[-1]


def test_several_norm_stats_are_all_copied_and_named(
    step: Path, tmp_path: Path, run_main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (step / "assets" / "trossen").mkdir()
    (step / "assets" / "trossen" / "norm_stats.json").write_text("{}")
    assert run_main(step, tmp_path / "out") == 0
    copies = sorted((tmp_path / "out").glob("assets/**/norm_stats.json"))
    assert len(copies) == 2
    out = capsys.readouterr().out
    assert f"must name one: {copies[0]}, {copies[1]}" in out
    assert "checkpoint.norm_stats=FILE" in out.splitlines()[-1]


NAME = "it's, a $(touch owned) ${x} folder"


def test_printed_commands_reach_folders_of_any_name(
    step: Path, tmp_path: Path, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = step.rename(tmp_path / NAME)
    with pytest.raises(FileNotFoundError) as caught:
        load_checkpoint(config(layout="openpi", path=str(strange)))
    command = re.search(r"`(\S+ -m policies\.pi05\.convert .+?)`", str(caught.value))
    assert command is not None
    assert shlex.split(command[1])[3:] == [str(strange), "DST"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(shlex.quote(str(strange)))):
        load_checkpoint(config(layout="openpi", path=NAME))  # a relative one is named whole

    out = tmp_path / f"{NAME} of weights"
    words = shlex.split(convert_checkpoint(strange, out, 12).evaluation())
    chosen = configure(words[3:]).checkpoint
    assert chosen.path == str(out)
    assert chosen.norm_stats == str(out / "assets" / "physical-intelligence" / "libero" / "norm_stats.json")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("below", ["", "params"])
def test_loading_a_jax_folder_names_the_command_that_converts_it(
    below: str, step: Path, tmp_path: Path, config: MakeConfig, run_main: Callable[..., int]
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_checkpoint(config(layout="openpi", path=str(step / below)))
    text = str(caught.value)
    assert "\n" not in text
    command = re.search(r"`\S+ -m policies\.pi05\.convert (.+?)`", text)
    assert command is not None
    out = str(tmp_path / "out")
    assert run_main(*[out if word == "DST" else word for word in shlex.split(command[1])]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_progress_bar_shows_on_a_terminal(step: Path, tmp_path: Path) -> None:
    console = Console(force_terminal=True, width=200, record=True, file=(tmp_path / "terminal").open("w"))
    convert_checkpoint(step, tmp_path / "out", console=console)
    shown = (tmp_path / "terminal").read_text()
    assert "time_mlp_out/kernel" in shown
    assert "MB" in shown


def test_a_folder_with_something_in_it_is_not_overwritten(step: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out exists already; name a new folder, or remove it"):
        convert_checkpoint(step, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    with pytest.raises(FileNotFoundError, match=r"no folder .*/no to put out into; create it"):
        convert_checkpoint(step, tmp_path / "no" / "out")
    (tmp_path / "empty").mkdir()
    convert_checkpoint(step, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_the_weights_are_on_the_disk_before_the_folder_has_its_name(
    step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def record(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        flushed.append((name, (tmp_path / "out").exists()))

    monkeypatch.setattr("os.fsync", record)
    convert_checkpoint(step, tmp_path / "out")
    assert {("model.safetensors", False), ("config.json", False), ("norm_stats.json", False)} <= set(flushed)
    assert flushed[-1] == (tmp_path.name, True)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "SPARE_BYTES", 2**70)
    with pytest.raises(OSError, match=r"needs 0\.0 GB for the tensors, and has \d+\.\d GB free; make room"):
        convert_checkpoint(step, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["29999"]


@pytest.mark.parametrize("horizon", [0, 10**9])
def test_a_horizon_that_no_chunk_has_is_refused(
    horizon: int,
    step: Path,
    tmp_path: Path,
    run_main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(step, tmp_path / "out", "--horizon", horizon) == 1
    assert capsys.readouterr().err == f"error: --horizon must be 1 to 1000, got {horizon}\n"


def test_names_of_folders_obey_no_terminal(
    step: Path, tmp_path: Path, run_main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(tmp_path / "no\x1b[2Jwhere", tmp_path / "out") == 1
    assert "no\\x1b[2Jwhere" in capsys.readouterr().err
    (step / "assets" / "a\x1b[2Jb").mkdir()
    (step / "assets" / "a\x1b[2Jb" / "norm_stats.json").write_text("{}")
    assert run_main(step, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "a\\x1b[2Jb" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["tree", "bf16"])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_left(
    number: float, form: str, arrays: Arrays, tmp_path: Path
) -> None:
    spoilt = arrays[KERNEL].copy()
    spoilt[1, 2, 3, 4] = number
    write_arrays(tmp_path / "step" / "params", {**arrays, KERNEL: spoilt}, form)
    with pytest.raises(ValueError, match=re.escape(f"{KERNEL}[1] must be finite")):
        convert_checkpoint(tmp_path / "step", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_leaves_nothing_behind(name: str, step: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from policies.pi05 import convert\n"
        "convert.check_finite = lambda *_: time.sleep(0.05)\n"
        "sys.exit(convert.main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(step), str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, as these tests may be, ignores ctrl-C and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(tmp_path.glob(".out.*.tmp/model.safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["29999"]


@pytest.mark.sim
@pytest.mark.usefixtures("simulator")
def test_a_converted_checkpoint_runs_an_episode(
    step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = convert_checkpoint(step, tmp_path / "out")
    words = shlex.split(done.evaluation())[3:-1]  # without `python -m eval` and the tokenizer
    words += [f"checkpoint.tokenizer={TOKENIZER_PATH}", f"checkpoint.sha256={done.weights_sha256}"]
    words += ["policy=baseline", "policy.device=cpu", "policy.precision=float32", "denoise.steps=1"]
    words += ["protocol=smoke", "suite.max_steps=6", "runner.warmup_inferences=0", "tracking=none"]
    monkeypatch.setattr("sys.argv", ["eval", *words, f"hydra.run.dir={tmp_path}/run"])
    cli.main()
    (episode,) = read_run(tmp_path / "run").episodes
    assert (episode.outcome, episode.steps, episode.inferences) == ("failure", 6, 2)
