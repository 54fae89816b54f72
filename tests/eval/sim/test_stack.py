"""The simulator stack refuses machines whose pixels or physics would differ."""

import ctypes.util
from importlib import metadata

import pytest

from eval.sim import stack as sim_stack
from eval.sim.stack import PINS, SimulatorError, check_versions, choose_gl, prepare


def test_no_gl_names_the_library_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(
        SimulatorError, match=r"no GL: libOSMesa was not found; run `apt-get install libosmesa6`"
    ):
        prepare()


def test_mujoco_gl_is_respected_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    for backend in ("egl", "osmesa"):
        monkeypatch.setenv("MUJOCO_GL", backend)
        assert choose_gl() == backend
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(SimulatorError, match="MUJOCO_GL must be one of egl, osmesa, got 'vulkan'"):
        choose_gl()


def test_contradicting_gl_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(SimulatorError, match="PYOPENGL_PLATFORM='egl' contradicts the GL backend 'osmesa'"):
        choose_gl()


def test_another_mujoco_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "3.4.0" if name == "mujoco" else PINS[name])
    with pytest.raises(
        SimulatorError, match=r"mujoco is 3\.4\.0, 3\.2\.3 is needed: other versions change physics"
    ):
        check_versions()


def test_a_context_that_cannot_be_opened_is_no_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[str, str]:
        raise RuntimeError("eglInitialize failed")

    monkeypatch.setattr(sim_stack, "_probe_gl", fail)
    with pytest.raises(
        SimulatorError, match=r"no GL: MUJOCO_GL=\w+ does not work here .*eglInitialize failed"
    ):
        prepare()


def test_egl_that_was_chosen_for_a_gpu_must_draw_with_it(
    simulator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.delenv("PYOPENGL_PLATFORM")
    monkeypatch.setattr(sim_stack, "choose_gl", lambda: "egl")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so")
    monkeypatch.setattr(sim_stack, "import_simulator", lambda: None)
    monkeypatch.setattr("robosuite.utils.binding_utils._MUJOCO_GL", "egl")
    monkeypatch.setattr(sim_stack, "_probe_gl", lambda: ("llvmpipe", "4.5"))
    with pytest.raises(SimulatorError, match="EGL draws with 'llvmpipe' and not with the NVIDIA GPU"):
        prepare()


def test_the_renderer_that_drew_the_pictures_is_recorded(simulator: dict[str, str]) -> None:
    assert simulator["gl"] in ("egl", "osmesa")
    assert simulator["gl_renderer"]
    assert simulator["gl_version"]
