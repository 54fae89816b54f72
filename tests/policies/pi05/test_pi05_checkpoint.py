"""Checkpoints: every layout loads whole, every fault is refused by name."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from policies.pi05.checkpoint import load_checkpoint, save_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import LIBERO_MASKED_CAMERAS, OPENPI_CAMERAS, PI05_FULL, PI05_SMALL, Pi05Dims
from policies.pi05.norm_stats import unit_stats
from policies.pi05.random_weights import TOKENIZER_PATH
from policies.pi05.weight_files import file_sha256
from tests.policies.pi05.folder import Folder

MakeConfig = Callable[..., CheckpointConfig]
LANGUAGE = "paligemma_with_expert.paligemma.model.language_model."
HEAD = "paligemma_with_expert.paligemma.lm_head.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "jax"}, "checkpoint.layout must be one of .*, got 'jax'"),
        ({"norm_mode": "minmax"}, "checkpoint.norm_mode must be one of .*, got 'minmax'"),
        ({"sizes": "medium"}, "checkpoint.sizes must be one of .*, got 'medium'"),
        (
            {"layout": "native"},
            "checkpoint.path must be a folder with layout=native, got None; give checkpoint.path=FOLDER$",
        ),
        ({"layout": "lerobot"}, "with layout=lerobot, got None; give checkpoint.path=FOLDER_OR_HUB_ID$"),
        ({"layout": "random", "path": "x"}, "checkpoint.path must be null with layout=random, got 'x'"),
        (
            {"layout": "native", "path": "x", "sizes": "small"},
            "checkpoint.sizes must be null with layout=native",
        ),
        ({"layout": "openpi", "path": "x", "revision": "main"}, "checkpoint.revision must be null unless"),
        ({"horizon": 0, "replan_steps": 0}, "checkpoint.horizon must be 1 to 1000, got 0"),
        ({"replan_steps": 11}, "checkpoint.replan_steps must be 1 to horizon=10, got 11"),
        ({"denoise_steps": 0}, "checkpoint.denoise_steps must be 1 to 1000, got 0"),
        ({"denoise_steps": 10**9}, "checkpoint.denoise_steps must be 1 to 1000, got 1000000000"),
        ({"horizon": 10**12}, "checkpoint.horizon must be 1 to 1000, got 1000000000000"),
        ({"state_in_prompt": True}, "checkpoint.state_prompt_dims must be 8 or 32 .*, got None"),
        *(
            (
                {"layout": layout, "path": "x", "state_in_prompt": True, "state_prompt_dims": dims},
                f"checkpoint.state_prompt_dims must be {wanted} with layout={layout} .*=true, got {dims}",
            )
            for layout, wanted in (("lerobot", "8 or 32"), ("native", "8 or 32"), ("openpi", "8"))
            for dims in (0, 7, 20, 33, 10**9)
        ),
        (
            {"layout": "openpi", "path": "x", "state_in_prompt": True, "state_prompt_dims": 32},
            "must be 8 with layout=openpi",
        ),
        ({"state_prompt_dims": 8}, "checkpoint.state_prompt_dims must be null .*, got 8"),
        ({"layout": "native", "path": "x", "sha256": "abc"}, "checkpoint.sha256 must be 64 .*, got 'abc'"),
        ({"seed": -1}, "checkpoint.seed must be 0 to .*, got -1"),
        ({"seed": 2**64}, "checkpoint.seed must be 0 to .*, got 18446744073709551616"),
        ({"layout": "lerobot", "path": "weights/pytorch_model.bin"}, "got the pickle .*model.bin"),
    ],
)
def test_bad_config_names_key_and_value(config: MakeConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_native_openpi_and_lerobot_layouts_give_the_same_network(
    native: Folder, openpi: Folder, lerobot: Folder, config: MakeConfig
) -> None:
    modes = {"native": "quantile", "openpi": "quantile", "lerobot": "mean_std"}
    loaded = [
        load_checkpoint(config(layout=f.layout, path=str(f.path), norm_mode=modes[f.layout]))
        for f in (native, openpi, lerobot)
    ]
    dims = loaded[0].dims
    for other in loaded[1:]:
        assert replace(other.dims, cameras=OPENPI_CAMERAS, masked_cameras=LIBERO_MASKED_CAMERAS) == dims
        for stage, module in loaded[0].stages.items():
            others = other.stages[stage].state_dict()
            assert all(torch.equal(others[name], tensor) for name, tensor in module.state_dict().items())
    assert [c.weights_label for c in loaded] == [str(f.path) for f in (native, openpi, lerobot)]
    assert loaded[0].weights_sha256 == file_sha256(native.path / "model.safetensors")
    assert loaded[2].norm_stats.eps == 1e-8


def test_norm_mode_decides_the_scale_of_actions(lerobot: Folder, native: Folder, config: MakeConfig) -> None:
    mean_std = load_checkpoint(config(layout="lerobot", path=str(lerobot.path), norm_mode="mean_std"))
    quantile = load_checkpoint(config(layout="native", path=str(native.path)))
    zeros = np.zeros((1, 1, 32), np.float32)
    np.testing.assert_allclose(mean_std.postprocess()(zeros), 0.2, atol=1e-6)
    np.testing.assert_allclose(quantile.postprocess()(zeros), -0.2, atol=1e-6)


def test_saved_checkpoint_loads_to_the_same_tensors_and_dtypes(
    config: MakeConfig, tmp_path: Path, small: Any
) -> None:
    bf16 = load_checkpoint(small.config, dtype=torch.bfloat16)
    for _ in range(2):  # a second save replaces the first
        save_checkpoint(tmp_path / "saved", bf16.dims, bf16.stages, unit_stats(), TOKENIZER_PATH)
    again = load_checkpoint(config(layout="native", path=str(tmp_path / "saved")), dtype=torch.bfloat16)
    assert again.dims == bf16.dims
    for stage, module in bf16.stages.items():
        for name, tensor in again.stages[stage].state_dict().items():
            assert tensor.dtype == module.state_dict()[name].dtype
            assert torch.equal(tensor, module.state_dict()[name])
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "model.safetensors",
        "norm_stats.json",
        "tokenizer.model",
    ]


def test_embedding_may_be_stored_under_either_name_or_both(native: Folder, config: MakeConfig) -> None:
    asked = config(layout="native", path=str(native.path))
    embedding = load_checkpoint(asked).stages["prefix"].state_dict()["embedding.weight"]
    tied = LANGUAGE + "embed_tokens.weight"
    native.rewrite(lambda t: t.update({tied: t[HEAD].clone()}))
    assert torch.equal(load_checkpoint(asked).stages["prefix"].state_dict()["embedding.weight"], embedding)
    native.rewrite(lambda t: t.__delitem__(HEAD))
    assert torch.equal(load_checkpoint(asked).stages["prefix"].state_dict()["embedding.weight"], embedding)
    native.rewrite(lambda t: t.update({HEAD: t[tied] + 1}))
    with pytest.raises(ValueError, match="with different values"):
        load_checkpoint(asked)


def test_lerobot_reads_embed_tokens_where_lm_head_has_other_values(
    lerobot: Folder, config: MakeConfig
) -> None:
    head, embedding = "model." + HEAD, "model." + LANGUAGE + "embed_tokens.weight"
    lerobot.rewrite(lambda t: t.update({embedding: t[head] + 1}))
    checkpoint = load_checkpoint(config(layout="lerobot", path=str(lerobot.path), norm_mode="mean_std"))
    assert torch.equal(
        checkpoint.stages["prefix"].state_dict()["embedding.weight"], lerobot.tensors()[embedding]
    )


def test_tensors_that_inference_never_reads_may_be_absent(native: Folder, config: MakeConfig) -> None:
    native.rewrite(lambda t: t.__delitem__("paligemma_with_expert.gemma_expert.lm_head.weight"))
    native.rewrite(lambda t: t.__delitem__(LANGUAGE + "layers.2.mlp.up_proj.weight"))
    load_checkpoint(config(layout="native", path=str(native.path)))


def test_missing_extra_and_misshaped_tensors_are_all_in_one_error(native: Folder, config: MakeConfig) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["time_mlp_in.bias"]
        del tensors[LANGUAGE + "layers.0.input_layernorm.weight"]
        tensors["state_proj.weight"] = torch.zeros(1)
        tensors["action_in_proj.weight"] = torch.zeros(64, 7)

    native.rewrite(spoil)
    with pytest.raises(ValueError, match="does not hold this network") as caught:
        load_checkpoint(config(layout="native", path=str(native.path)))
    text = str(caught.value)
    assert "2 missing:" in text
    assert "time_mlp_in.bias" in text
    assert LANGUAGE + "layers.0.input_layernorm.weight" in text
    assert "1 unexpected:\n    state_proj.weight" in text
    assert "1 of another shape:\n    action_in_proj.weight: expected [64, 32], got [64, 7]" in text


def test_wrong_shape_of_an_unused_tensor_is_noticed(native: Folder, config: MakeConfig) -> None:
    native.rewrite(lambda t: t.update({LANGUAGE + "norm.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"language_model.norm.weight: expected \[128\], got \[3\]"):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_long_lists_of_tensors_are_cut_with_a_count(native: Folder, config: MakeConfig) -> None:
    def rename_biases(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.endswith(".bias")]:
            tensors[f"{key}_of_another_layout"] = tensors.pop(key)

    native.rewrite(rename_biases)
    lists = r"(?s)missing:(\n    \S+){10} and \d+ more\n.*unexpected:.*check the layout"
    with pytest.raises(ValueError, match=lists):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_keys_of_another_layout_are_refused_with_the_first(lerobot: Folder, config: MakeConfig) -> None:
    wrong_layout = config(layout="openpi", path=str(lerobot.path), norm_stats=str(_stats_file(lerobot)))
    config_json = {
        "action_dim": 32,
        "action_horizon": 10,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
    }
    (lerobot.path / "config.json").write_text(json.dumps(config_json))
    message = r"has no layers of this layout: no key like pali\S+, its first is model\.action_in_proj\.bias"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(wrong_layout)


def _stats_file(folder: Folder) -> Path:
    return next(folder.path.glob("*normalizer*"))


def test_missing_norm_stats_say_where_it_looked(native: Folder, config: MakeConfig) -> None:
    (native.path / "norm_stats.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no norm stats: looked for .*native/norm_stats.json; .*set checkpoint"
    ):
        load_checkpoint(config(layout="native", path=str(native.path)))
    with pytest.raises(FileNotFoundError, match=r"checkpoint.norm_stats: no file 'nowhere.json'"):
        load_checkpoint(config(layout="native", path=str(native.path), norm_stats="nowhere.json"))


def test_several_norm_stats_are_listed(openpi: Folder, config: MakeConfig) -> None:
    first = next(openpi.path.glob("assets/**/norm_stats.json"))
    second = openpi.path / "assets" / "droid" / "norm_stats.json"
    second.parent.mkdir()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"2 norm stats match .*droid.*libero"):
        load_checkpoint(config(layout="openpi", path=str(openpi.path)))
    load_checkpoint(config(layout="openpi", path=str(openpi.path), norm_stats=str(second)))


def test_missing_tokenizer_says_where_it_looked(native: Folder, config: MakeConfig) -> None:
    (native.path / "tokenizer.model").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer: looked in .*native for tokenizer.model, .*; put PaliGemma's"
    ):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_tokenizer_larger_than_the_embedding_is_refused(native: Folder, config: MakeConfig) -> None:
    native.edit_config(vocab_size=100)
    with pytest.raises(
        ValueError, match=r"checkpoint\.tokenizer must have 100 pieces for the 100 rows .*, got 512 in "
    ):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_horizon_that_disagrees_with_config_json_is_refused(
    native: Folder, openpi: Folder, lerobot: Folder, config: MakeConfig
) -> None:
    native.edit_config(action_horizon=50)
    openpi.edit_config(action_horizon=50)
    lerobot.edit_config(chunk_size=50)
    for folder in (native, openpi, lerobot):
        with pytest.raises(
            ValueError,
            match=r"checkpoint.horizon must be 50 as .*in .*config.json, got 10; set checkpoint.horizon=50",
        ):
            load_checkpoint(config(layout=folder.layout, path=str(folder.path), norm_mode="mean_std"))


def test_other_weights_than_expected_are_refused(native: Folder, config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"checkpoint.sha256 of .* must be 0{64}, got [0-9a-f]{64}"):
        load_checkpoint(config(layout="native", path=str(native.path), sha256="0" * 64))


def test_folder_with_only_pickles_is_refused(native: Folder, config: MakeConfig) -> None:
    (native.path / "model.safetensors").rename(native.path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model.safetensors, only pickles: pytorch_model.bin; "):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_truncated_weights_are_refused(native: Folder, config: MakeConfig) -> None:
    path = native.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_checkpoint(config(layout="native", path=str(native.path)))


@pytest.mark.parametrize("layout", ["native", "openpi"])
def test_folder_that_is_not_there_is_named(config: MakeConfig, layout: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder 'some/where' .*layout={layout} takes no hub id"):
        load_checkpoint(config(layout=layout, path="some/where"))


def test_hub_id_offline_fails_at_once(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    began = time.monotonic()
    with pytest.raises(
        FileNotFoundError, match="no folder 'nobody/pi05_not_cached', and the hub did not give it"
    ):
        load_checkpoint(config(layout="lerobot", path="nobody/pi05_not_cached"))
    assert time.monotonic() - began < 5.0


def test_missing_config_json_is_named(native: Folder, config: MakeConfig) -> None:
    (native.path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*config.json, which holds the network's sizes"):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_fp16_is_refused(config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16"):
        load_checkpoint(config(), dtype=torch.float16)


def test_random_weights_follow_the_seed_and_say_that_they_are_random(config: MakeConfig) -> None:
    first, again, other = (load_checkpoint(config(seed=seed)) for seed in (0, 0, 1))
    for stage, module in first.stages.items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, again.stages[stage].state_dict()[name])
            assert not torch.equal(tensor, other.stages[stage].state_dict()[name])
    assert first.weights_label == "RANDOM WEIGHTS (small)"
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


def test_horizon_of_random_weights_is_the_configs(config: MakeConfig) -> None:
    assert load_checkpoint(config(horizon=50)).dims.action_horizon == 50


def test_native_dims_survive_json() -> None:
    for dims in (PI05_SMALL, PI05_FULL):
        assert Pi05Dims.from_native(json.loads(json.dumps(dims.to_native())), "json") == dims


def test_full_size_is_openpis() -> None:
    assert PI05_FULL.tokens_per_image * len(PI05_FULL.cameras) + PI05_FULL.max_token_len == 968
    assert (PI05_FULL.prefix.width, PI05_FULL.prefix.mlp_dim, PI05_FULL.expert.width) == (2048, 16384, 1024)
    assert PI05_FULL.vision.head_dim == 72


@pytest.mark.parametrize(
    ("read", "raw", "message"),
    [
        (Pi05Dims.from_openpi, {"action_horizon": 10, "action_dim": 32}, "has no 'paligemma_variant'"),
        (
            Pi05Dims.from_openpi,
            {"action_horizon": 10, "action_dim": 32, "paligemma_variant": "gemma_2b_lora"},
            "paligemma_variant must be one of .*, got 'gemma_2b_lora' in here; merge LoRA",
        ),
        (Pi05Dims.from_lerobot, {"type": "pi0"}, "type must be 'pi05', got 'pi0' in here"),
        (
            Pi05Dims.from_lerobot,
            {"type": "pi05", "image_resolution": [224, 256]},
            "image_resolution must be square, got 224x256",
        ),
        (Pi05Dims.from_native, {**PI05_SMALL.to_native(), "vision": {"layers": 2}}, "here vision has no"),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "vision": 3},
            "vision must be an object with intermediate_size, .*, got 3 in here",
        ),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "cameras": 3},
            "cameras must be a list of names, got 3 in here",
        ),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "masked_cameras": [["nose"]]},
            r"masked_cameras must be a list of names, got \[\['nose'\]\] in here",
        ),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "patch_size": True},
            "here: patch_size must be a whole",
        ),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "prefix": {**PI05_SMALL.to_native()["prefix"], "depth": None}},
            "here: prefix.depth must be a whole number >= 1, got None",
        ),
        (
            Pi05Dims.from_lerobot,
            {"type": "pi05", "image_resolution": 224},
            r"image_resolution must be \[height, width\], got 224 in here",
        ),
        (
            Pi05Dims.from_openpi,
            {"action_horizon": 10, "action_dim": 32, "paligemma_variant": ["gemma_2b"]},
            r"paligemma_variant must be one of .*, got \['gemma_2b'\] in here",
        ),
        (Pi05Dims.from_native, {**PI05_SMALL.to_native(), "action_dim": "32"}, "whole number >= 1, got '32'"),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "image_size": 225},
            "multiple of patch_size=14, got 225",
        ),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "masked_cameras": ["nose"]},
            r"masked_cameras must be among .*, got \['nose'\]",
        ),
        (
            Pi05Dims.from_native,
            {**PI05_SMALL.to_native(), "expert": {**PI05_SMALL.to_native()["expert"], "depth": 2}},
            "expert.depth must equal prefix.depth=3, got 2",
        ),
    ],
)
def test_bad_sizes_name_key_and_value(
    read: Callable[[dict[str, Any], str], Pi05Dims], raw: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(raw, "here")
