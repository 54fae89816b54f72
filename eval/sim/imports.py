"""Import robosuite and LIBERO for any user of a machine; what fails names its own cause.

Non-obvious behaviors:
    * robosuite logs into /tmp/robosuite.log, which belongs to the first user of a machine, and nobody else
      could import it. Its module of settings is loaded first, and told not to.
    * numba caches what it compiles beside robosuite's source, else in the user's home, else it refuses. Where
      both are read-only it gets a folder of this process.
"""

import atexit
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from eval.sim.errors import SimulatorError

MACROS = "robosuite.macros"
GL_FILES = ("/OpenGL/", "/mujoco/egl/", "/mujoco/osmesa/", "/renderers/context/")


def import_simulator() -> None:
    """Import robosuite and LIBERO without their banners.

    Raises:
        SimulatorError: why they cannot be imported; what GL raises is passed through.
    """
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # "no private macro file", at every import
    logging.getLogger("OpenGL").setLevel(logging.WARNING)  # "no accelerate module"
    try:
        _load_settings()
        _give_numba_a_cache()
        importlib.import_module("robosuite")
        importlib.import_module("libero.libero.envs")
    except Exception as error:
        if is_gl(error):
            raise
        raise SimulatorError(
            f"the simulator cannot be imported: {type(error).__name__}: {error}{way_out(error)}"
        ) from error


def is_gl(error: Exception) -> bool:
    """Whether an error came out of OpenGL's loading."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(part in file for file in files for part in GL_FILES)


def way_out(error: Exception) -> str:
    """What to do about an import that failed, to be put behind its message; empty where that says it."""
    text = str(error)
    if "cannot open shared object file" in text:
        library = text.partition(":")[0]
        return f"; install the system's package of {library} (`make install` names those that are needed)"
    if isinstance(error, ModuleNotFoundError):
        return "; run `make install`"
    if "no locator available" in text:
        return "; set NUMBA_CACHE_DIR to a folder that you may write to"
    if isinstance(error, PermissionError):
        return "; another user owns it: let this one read it, or remove it"
    if "home directory" in text:
        return "; set HOME to a folder"
    return ""


def _load_settings() -> None:
    """Load robosuite's settings ahead of robosuite, without a log file for the whole machine."""
    if "robosuite" in sys.modules:
        return
    package = importlib.util.find_spec("robosuite")
    if package is None or not package.submodule_search_locations:
        return  # its import says so
    source = Path(package.submodule_search_locations[0], "macros.py")
    spec = importlib.util.spec_from_file_location(MACROS, source)
    assert spec is not None, "a Python file has a loader"
    assert spec.loader is not None, "a Python file has a loader"
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules[MACROS] = macros


def _give_numba_a_cache() -> None:
    """Set NUMBA_CACHE_DIR to a new folder where numba would find none to write to."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    package = importlib.util.find_spec("robosuite")
    beside = Path(package.origin).parent / "utils" / "__pycache__" if package and package.origin else None
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")
    if (beside and _is_writable(beside)) or _is_writable(home):
        return
    folder = tempfile.mkdtemp(prefix="numba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder


def _is_writable(folder: Path) -> bool:
    """Whether this user can write into a folder, which may have to be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists() or path == path.parent)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
