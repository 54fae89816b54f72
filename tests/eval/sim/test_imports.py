"""The simulator is imported for any user of a machine, and what fails names its own cause."""

import os
import stat
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from eval.sim import imports
from eval.sim.errors import SimulatorError
from eval.sim.imports import import_simulator, is_gl
from policies.files import ROOT

ANOTHER_USER = 12345
PREPARE = (
    "import logging, os\n"
    "from eval.sim.stack import prepare\n"
    "prepare()\n"
    "print([type(handler).__name__ for handler in logging.getLogger('robosuite_logs').handlers])\n"
    "print(os.environ.get('NUMBA_CACHE_DIR', ''))\n"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(13, "Permission denied", "/opt/robosuite"),
            "'/opt/robosuite'; another user owns it",
        ),
        (
            ImportError("libGL.so.1: cannot open shared object file: x"),
            "; install the system's package of libGL.so.1",
        ),
        (
            ModuleNotFoundError("No module named 'cv2'"),
            "ModuleNotFoundError: No module named 'cv2'; run `make",
        ),
        (
            RuntimeError("cannot cache function 'f': no locator available for file 'g'"),
            "; set NUMBA_CACHE_DIR to",
        ),
        (RuntimeError("Could not determine home directory."), "; set HOME to a folder"),
        (ZeroDivisionError("division by zero"), "imported: ZeroDivisionError: division by zero"),
    ],
)
def test_an_import_that_fails_names_its_own_cause(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(imports, "_load_settings", fail)
    with pytest.raises(SimulatorError, match=r"^the simulator cannot be imported: ") as raised:
        import_simulator()
    assert said in str(raised.value)
    assert "osmesa" not in str(raised.value)


def test_what_opengl_raises_is_opengls(tmp_path: Path) -> None:
    file = tmp_path / "OpenGL" / "platform.py"
    file.parent.mkdir()
    file.write_text("raise AttributeError('no eglQueryString')")
    spec = util.spec_from_file_location("platform", file)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(AttributeError) as raised:
        spec.loader.exec_module(util.module_from_spec(spec))
    assert is_gl(raised.value)
    assert not is_gl(AttributeError("no eglQueryString"))


@pytest.mark.sim
def test_no_log_file_of_the_whole_machine_is_opened() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[0] == "['StreamHandler']", done.stderr


@pytest.mark.sim
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_without_a_home_can_simulate(tmp_path: Path) -> None:
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    environ["PYTHONPATH"] = f"{ROOT}:{packages}"
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    for python in (sys.executable, system):
        try:
            done = subprocess.run(
                [python, "-c", PREPARE],
                cwd="/",
                env=environ,
                user=ANOTHER_USER,
                group=ANOTHER_USER,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )
        except (PermissionError, FileNotFoundError):
            continue
        if not os.stat(ROOT).st_mode & stat.S_IXOTH or "No module named" in done.stderr:
            break
        handlers, cache = done.stdout.splitlines() or pytest.fail(done.stderr)
        assert handlers == "['StreamHandler']"
        assert "numba-" in cache
        assert not Path(cache).exists()
        return
    pytest.skip("no Python and checkout here that another user may read")
