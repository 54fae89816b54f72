"""Tab completion in bash offers keys and values of the command that is typed."""

import shutil
import subprocess
import sys

import pytest

from eval.app.completion import SCRIPT
from policies.files import ROOT

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def offered(line: str) -> list[str]:
    script = f"{SCRIPT}\nCOMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; _libero_eval; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_group_s_options_are_offered_after_python_m() -> None:
    assert {"policy=baseline", "policy=native_fp8"} <= set(offered(f"{sys.executable} -m eval policy="))
    assert offered(f"{sys.executable} -m eval seed=7 policy=nat") == ["policy=native_fp8"]


def test_other_commands_of_python_are_left_alone() -> None:
    assert offered(f"{sys.executable} -m pip ins") == []


def test_the_command_prints_the_script() -> None:
    command = [sys.executable, "-m", "eval", "-sc", "install=bash"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == SCRIPT
