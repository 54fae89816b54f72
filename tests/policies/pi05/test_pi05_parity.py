"""The stages against outputs recorded from openpi."""

import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from policies.pi05.parity import compare, main


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
