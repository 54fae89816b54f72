"""The stages against outputs recorded from openpi."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.pi05.parity import compare, main

Refusal = Callable[..., str]


def test_full_and_lean_forms_match_openpi(parity_folder: Path) -> None:
    results = compare(parity_folder)
    assert {result.form for result in results} == {"lean", "full"}
    assert {result.output for result in results if result.form == "full"} == {
        name for name in load_file(parity_folder / "parity.safetensors") if name.startswith("out.")
    }
    assert {r.output: r.max_rel for r in results if r.max_rel > 3e-6} == {}


@pytest.mark.parametrize(
    "key",
    [
        "time_mlp_in.weight",
        "paligemma_with_expert.gemma_expert.model.layers.2.post_attention_layernorm.dense.bias",
        "paligemma_with_expert.paligemma.model.language_model.layers.1.self_attn.k_proj.weight",
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.position_embedding.weight",
    ],
)
def test_a_weight_changed_by_a_thousandth_breaks_parity(
    parity_folder: Path, tmp_path: Path, key: str
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(parity_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[key] = tensors[key] * 1.001
    save_file(tensors, folder / "model.safetensors")
    assert max(result.max_rel for result in compare(folder)) > 1e-5


@pytest.mark.parametrize(("rtol", "status"), [("1e-5", 0), ("1e-9", 1)])
def test_command_exits_1_above_the_bound(
    parity_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rtol: str,
    status: int,
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", str(parity_folder), "--rtol", rtol])
    assert main() == status
    assert ("FAIL" in capsys.readouterr().out) == bool(status)


@pytest.fixture
def folder(parity_folder: Path, tmp_path: Path) -> Path:
    """A copy of the parity folder, to be spoilt."""
    return Path(shutil.copytree(parity_folder, tmp_path / "spoilt"))


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What the command says to a folder that it cannot compare: exit status 2 and one line on stderr."""

    def refuse(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, arguments)])
        assert main() == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return refuse


def test_missing_folder_and_files_are_named(refusal: Refusal, folder: Path) -> None:
    assert refusal("no/where").startswith("no folder 'no/where'; give one with config.json, ")
    for name in ("parity.safetensors", "model.safetensors", "config.json"):
        (folder / name).rename(folder / "elsewhere")
        assert refusal(folder).startswith(f"no {folder / name}")
        (folder / "elsewhere").rename(folder / name)


def test_unreadable_files_are_named(refusal: Refusal, folder: Path) -> None:
    problems = {
        "parity.safetensors": "is not a readable safetensors file: ",
        "model.safetensors": "is not a readable safetensors file: ",
        "config.json": "is not JSON: ",
    }
    for name, problem in problems.items():
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xff" * 100)
        assert refusal(folder).startswith(f"{folder / name} {problem}")
        (folder / name).write_bytes(content)


def test_weights_of_another_network_are_one_line(refusal: Refusal, folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    assert refusal(folder).startswith(f"{folder / 'model.safetensors'} has no layers of this layout: ")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"in.noise": None, "in.image.base_0_rgb": None}, "lacks in.image.base_0_rgb, in.noise;"),
        ({"out.velocity_t1": None}, "lacks out.velocity_t1;"),
        (dict.fromkeys(("out.actions_1", "out.actions_3", "out.actions_10")), "lacks out.actions_<steps>;"),
        (
            {"out.suffix_embs": torch.zeros(1), "out.actions_x": torch.zeros(1)},
            "has out.actions_x, out.suffix_embs, which parity does not compute; it computes out.actions_1, ",
        ),
        ({"out.actions_3": torch.zeros(1, 10, 32)}, "out.actions_3 must not be all zero"),
        (
            {"out.actions_3": torch.ones(1, 9, 32)},
            "out.actions_3 must be float32 [1, 10, 32], got float32 [1, 9, 32] in ",
        ),
        (
            {"in.image.base_0_rgb": torch.zeros(1, 3, 8, 8)},
            "in.image.base_0_rgb must be uint8 [1, any, any, 3], got float32 [1, 3, 8, 8] in ",
        ),
        (
            {"in.image.base_0_rgb": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)},
            "in.image.* must have one size, got [(1, 8, 8, 3), (1, 224, 224, 3)] in ",
        ),
        (
            {"in.token_mask": torch.zeros(1, 200, dtype=torch.bool)},
            "in.tokens must have at least one token under in.token_mask, all 0 to ",
        ),
        (
            {"out.prefix_pad_mask": torch.zeros(1, 968, dtype=torch.bool)},
            "lean out.prefix_embs must have shape ",
        ),
    ],
)
def test_recording_that_does_not_fit_is_refused(
    refusal: Refusal, folder: Path, changes: dict[str, Tensor | None], problem: str
) -> None:
    path = folder / "parity.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    assert refusal(folder).removeprefix(f"{path} ").startswith(problem)


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_device_that_is_not_there_is_refused(refusal: Refusal, parity_folder: Path, device: str) -> None:
    assert refusal(parity_folder, "--device", device).startswith("--device")
