"""Folders that are no checkpoint: the error says whose they are and what to do."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.config.multiply import parse_overrides
from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.checkpoint_files import find_weights, read_config
from tests.policies.pi05.folder import Folder


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def adapter(folder: Path, content: str) -> Path:
    touch(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(content)
    return folder


def test_an_adapter_is_refused_with_the_command_that_merges_it(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", json.dumps({"base_model_name_or_path": "lerobot/pi05_base"}))
    with pytest.raises(ValueError, match="is a LoRA adapter") as caught:
        find_weights(folder)
    text = str(caught.value)
    assert "(adapter_config.json, adapter_model.safetensors)" in text
    assert 'PI05Policy.from_pretrained("lerobot/pi05_base", config=config)' in text
    assert f'PeftModel.from_pretrained(policy, "{folder}").merge_and_unload()' in text
    assert f"cp {folder}/policy_p*processor* OUT; then set checkpoint.path=OUT" in text
    compile(merge_code(text), "merge", "exec")


def merge_code(text: str) -> str:
    """The code that a shell hands to Python when somebody runs the command of the message."""
    words = shlex.split(text[text.index("python -c") :].partition("; then set")[0])
    assert words[3] == "&&"
    return words[2]


def test_a_shell_runs_nothing_of_an_adapters_text(tmp_path: Path) -> None:
    base = "me/base\" ; touch pwned ; echo '"
    folder = adapter(tmp_path / "lora", json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(ValueError, match="is a LoRA adapter") as caught:
        find_weights(folder)
    compile(merge_code(str(caught.value)), "merge", "exec")


def test_an_adapter_without_its_config_leaves_the_base_open(tmp_path: Path) -> None:
    touch(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r'PI05Policy\.from_pretrained\("BASE", config=config\)'):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"adapter_config\.json is not JSON"),
        ("[]", r"adapter_config\.json must be a JSON object, got list"),
        ("{}", "base_model_name_or_path must name the network of the adapter, got null in .*json; copy"),
        ('{"base_model_name_or_path": ["x"]}', r"base_model_name_or_path must name .*, got \[\"x\"\] in"),
    ],
)
def test_an_adapter_config_of_another_kind_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_weights(adapter(tmp_path, content))


def test_an_adapter_beside_weights_is_refused(
    native: Folder, config: Callable[..., CheckpointConfig]
) -> None:
    touch(native.path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"has weights and an adapter \(adapter_model\.safetensors\), which"):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_one_file_beside_an_index_is_refused(native: Folder, config: Callable[..., CheckpointConfig]) -> None:
    touch(native.path / "model.safetensors.index.json")
    with pytest.raises(
        ValueError, match=r"has model\.safetensors and model\.safetensors\.index\.json, of two"
    ):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_shards_without_their_index_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "model-00001-of-00002.safetensors")
    message = (
        r"model-00001-of-00002\.safetensors is one of several shards: copy model\.safetensors\.index\.json"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_weights(tmp_path)


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/020000"])
def test_lerobots_run_folder_names_the_checkpoint_inside(tmp_path: Path, inside: str) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in ("005000", "020000"):
        touch(checkpoints / step / "pretrained_model" / "model.safetensors", checkpoints / step / "state")
    (checkpoints / "last").symlink_to("020000")
    last = {"": "checkpoints/last/", "checkpoints": "last/", "checkpoints/020000": ""}[inside]
    folder = tmp_path / inside
    way_out = rf"it is the folder of a training run: set checkpoint\.path={folder}/{last}pretrained_model$"
    with pytest.raises(FileNotFoundError, match=way_out):
        find_weights(folder)


def test_a_run_folder_of_any_name_is_named_as_a_command_line_takes_it(tmp_path: Path) -> None:
    folder = tmp_path / "it's, a run"
    touch(folder / "checkpoints" / "5000" / "pretrained_model" / "model.safetensors")
    with pytest.raises(FileNotFoundError) as refused:
        find_weights(folder)
    [word] = shlex.split(str(refused.value).rpartition(": set ")[2])
    [override] = parse_overrides([word])
    assert override.value() == str(folder / "checkpoints" / "5000" / "pretrained_model")


def test_of_a_runs_steps_without_last_the_last_is_named(tmp_path: Path) -> None:
    for step in ("5000", "20000"):
        touch(tmp_path / "checkpoints" / step / "pretrained_model" / "adapter_model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"path=.*/checkpoints/20000/pretrained_model$"):
        find_weights(tmp_path)


def test_openpis_pytorch_run_names_its_last_step(tmp_path: Path) -> None:
    for step in ("9000", "10000"):
        touch(tmp_path / step / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"set checkpoint\.path=.*/10000$"):
        find_weights(tmp_path)


def test_openpis_pytorch_trainer_folder_names_the_sizes(native: Folder) -> None:
    (native.path / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"network's sizes; copy it from where the weights came from$"
    ):
        read_config(native.path)
    touch(native.path / "metadata.pt")
    with pytest.raises(FileNotFoundError, match=r"openpi's PyTorch trainer.*give checkpoint\.sizes=pi05$"):
        read_config(native.path)


@pytest.mark.parametrize("given", ["", "29999", "29999/params"])
def test_jax_folders_name_the_converter_and_the_step(tmp_path: Path, given: str) -> None:
    touch(*(tmp_path / step / "params" / "_METADATA" for step in ("9999", "29999")))
    command = (
        rf"it is a JAX checkpoint: convert it with `\S+ -m policies\.pi05\.convert {tmp_path}/29999 DST`"
    )
    with pytest.raises(FileNotFoundError, match=command):
        find_weights(tmp_path / given)
