"""A lerobot folder on this machine is read with the configuration, before torch is imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.config.compose import configure
from eval.config.tasks import check_folder
from policies.files import ROOT

SMALL = ROOT / "tests" / "parity" / "lerobot_small"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that are read before weights."""
    for name in SMALL.glob("*.json"):
        shutil.copyfile(name, tmp_path / name.name)
    for name in SMALL.glob("policy_*.safetensors"):
        shutil.copyfile(name, tmp_path / name.name)
    return tmp_path


def test_a_folder_is_checked_without_torch(folder: Path) -> None:
    program = (
        "import sys; from eval.config.compose import configure; from eval.config.tasks import check_folder; "
        f"check_folder(configure(['checkpoint=lerobot_pi05_libero', 'checkpoint.path={folder}'])); "
        "print(sorted({'torch', 'huggingface_hub'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_what_is_not_honoured_is_refused_with_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_visual_memory": True}))
    with pytest.raises(ValueError, match="use_visual_memory must be false, got true"):
        check_folder(configure(["checkpoint=lerobot_pi05_libero", f"checkpoint.path={folder}"]))
    check_folder(configure(["checkpoint=reference"]))


def test_denoise_steps_of_the_command_line_win_and_null_is_as_saved(folder: Path) -> None:
    path = f"checkpoint.path={folder}"
    assert configure(["checkpoint=lerobot_pi05_libero", path]).denoise.steps is None
    chosen = configure(["checkpoint=lerobot_pi05_libero", path, "denoise.steps=3"])
    assert chosen.denoise.steps == 3
    check_folder(chosen)


def test_both_openpi_choices_say_what_they_assume_of_the_prompt() -> None:
    published = configure(["checkpoint=pi05_libero", "checkpoint.path=x"]).checkpoint
    tuned = configure(["checkpoint=pi05_openpi", "checkpoint.path=x"]).checkpoint
    assert (published.state_in_prompt, published.state_prompt_dims, published.horizon) == (False, None, 10)
    assert (tuned.state_in_prompt, tuned.state_prompt_dims, tuned.horizon) == (True, 8, None)
    for name in ("pi05_libero", "pi05_openpi"):
        text = (ROOT / "conf" / "checkpoint" / f"{name}.yaml").read_text()
        assert "# Assumed, because no file says it: prompt with" in text


def test_openpis_checkpoint_as_lerobot_converted_it_has_a_choice_of_its_own() -> None:
    checkpoint = configure(["checkpoint=lerobot_pi05_libero_base"]).checkpoint
    assert (checkpoint.path, checkpoint.state_in_prompt) == ("lerobot/pi05_libero_base", False)
    with pytest.raises(
        ValueError, match=r"lerobot/pi05_libero_base: .*choose checkpoint=lerobot_pi05_libero_b"
    ):
        configure(["checkpoint=lerobot_pi05_libero", "checkpoint.path=lerobot/pi05_libero_base"])
