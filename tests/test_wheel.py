"""The wheel, in an environment of its own: it runs from any folder, whatever files that folder has."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from policies.files import ROOT

SHADOWS = ("eval.py", "policies/__init__.py", "optim/__init__.py", "conf/__init__.py")
SOURCES = ("conf", "eval", "optim", "policies", "pyproject.toml", "README.md")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True)
    [wheel] = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


@pytest.mark.sim
def test_the_wheel_runs_in_a_folder_whose_files_are_called_like_its_packages(
    scripts: Path, tmp_path: Path
) -> None:
    for name in SHADOWS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    arguments = ["policy=oracle", "protocol=smoke", "tracking=none", "hydra.run.dir=run"]
    done = subprocess.run(
        [scripts / "libero-eval", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["finished"]
    assert run["provenance"]["git"]["error"] == "installed as a package, no checkout"


def test_commands_of_the_wheel_are_its_own_where_a_folder_has_its_packages(
    scripts: Path, tmp_path: Path
) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "__init__.py").write_text("raise SystemExit('not ours')")
    for module in ("eval", "eval.compare", "eval.summary"):
        command = [scripts / "python", "-m", module, "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.startswith(f"usage: python -m {module}")) == (0, True)


def test_modules_of_the_current_folder_are_found(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("NUMBER = 7")
    code = "from policies.files import search_current_folder_last as last; last(); import mine, eval; "
    show = "print(mine.NUMBER, eval.__file__)"
    (tmp_path / "eval.py").write_text("raise SystemExit('not ours')")
    command = [scripts / "python", "-P", "-c", code + show]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    number, file = done.stdout.split()
    assert (number, Path(file).parent.parent.name) == ("7", "site-packages")
