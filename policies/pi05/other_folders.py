"""Folders that are no checkpoint but lead to one: whose they are, and the way from each."""

import json
import shlex
from pathlib import Path

from policies.files import read_json_object
from policies.pi05.weight_files import INDEX, WEIGHTS
from policies.text import brief, shell_command, shell_override

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # as PEFT names them
_TRAINER_FILES = ("metadata.pt", "optimizer.pt")  # openpi scripts/train_pytorch.py
_ORBAX_FILES = ("_METADATA", "manifest.ocdbt")
# where lerobot and openpi's trainers put checkpoints below the folder of a run; of steps the last is taken
_BELOW = (
    "pretrained_model",
    "last/pretrained_model",
    "checkpoints/last/pretrained_model",
    "[0-9]*/pretrained_model",
    "checkpoints/[0-9]*/pretrained_model",
    "[0-9]*",
)


def refuse_adapter(folder: Path) -> None:
    """Raise ValueError for a LoRA adapter, which is no network, or is not merged into the one beside it."""
    adapter = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not adapter:
        return
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise ValueError(
            f"{folder} has weights and an adapter ({', '.join(adapter)}), which would not be applied; "
            "remove the adapter if it is merged into the weights, else merge it first"
        )
    raise ValueError(
        f"{folder} is a LoRA adapter ({', '.join(adapter)}), not a network; merge it where lerobot and "
        f"peft are installed, OUT being a new folder: {_merge_command(folder)}; then set checkpoint.path=OUT"
    )


def way_out(folder: Path) -> str:
    """What to do with a folder without weights."""
    if (folder / "params").is_dir():
        return _convert(folder)
    if folder.name == "params" or any((folder / name).is_file() for name in _ORBAX_FILES):
        return _convert(folder.resolve().parent)
    for pattern in _BELOW:
        for below in sorted(folder.glob(pattern), key=_step, reverse=True):
            if (below / "params").is_dir():
                return _convert(below)
            if any((below / name).is_file() for name in (WEIGHTS, INDEX, *ADAPTER_FILES)):
                return (
                    f"it is the folder of a training run: set {shell_override('checkpoint.path', str(below))}"
                )
    if shards := sorted(folder.glob("model-*-of-*.safetensors")):
        return f"{shards[0].name} is one of several shards: copy {INDEX} from where it came from"
    return f"save it as one {WEIGHTS}, or as shards with {INDEX}"


def way_out_without_config(folder: Path) -> str:
    """What to do with a folder that has weights and no config.json."""
    if any((folder / name).is_file() for name in _TRAINER_FILES):
        return "it is from openpi's PyTorch trainer, which writes none: give checkpoint.sizes=pi05"
    return "copy it from where the weights came from"


def _convert(step: Path) -> str:
    command = shell_command("policies.pi05.convert", shlex.quote(str(step.absolute())), "DST")
    return f"it is a JAX checkpoint: convert it with `{command}`, then set checkpoint.path=DST"


def _step(folder: Path) -> int:
    """The last number in the path; -1 for none."""
    return next((int(part) for part in reversed(folder.parts) if part.isdecimal()), -1)


def _merge_command(folder: Path) -> str:
    """The command with which lerobot and PEFT merge the adapter, and the copy of what belongs to it."""
    base = "BASE"
    path = folder / ADAPTER_FILES[0]
    if path.is_file():
        name = read_json_object(path).get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"base_model_name_or_path must name the network of the adapter, got {brief(name)} in {path}; "
                "copy it from the training run"
            )
        base = name
    code = (
        "from lerobot.configs.policies import PreTrainedConfig; "
        "from lerobot.policies.pi05.modeling_pi05 import PI05Policy; "
        "from peft import PeftModel; "
        f"config = PreTrainedConfig.from_pretrained({json.dumps(str(folder))}); "
        "config.use_peft = False; "
        f"policy = PI05Policy.from_pretrained({json.dumps(base)}, config=config); "
        f"merged = PeftModel.from_pretrained(policy, {json.dumps(str(folder))}).merge_and_unload(); "
        'merged.save_pretrained("OUT")'
    )
    # the base's name is somebody's text: quoted, a shell runs none of it
    return f"python -c {shlex.quote(code)} && cp {shlex.quote(str(folder))}/policy_p*processor* OUT"
