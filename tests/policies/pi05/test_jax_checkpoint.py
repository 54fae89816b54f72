"""Stores of JAX checkpoints: every chunk is read, damage and strangers are refused by name."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.pi05.convert import convert_checkpoint, main
from policies.pi05.jax_checkpoint import find_params, open_arrays
from tests.policies.pi05.jax_folder import write_arrays

Write = Callable[..., Path]
RNG = np.random.default_rng(5)
SOME = {"a/kernel": RNG.normal(size=(6, 4)).astype(np.float32), "b/bias": np.zeros(3, np.float32)}


@pytest.fixture
def store(tmp_path: Path) -> Write:
    def write(**options: Any) -> Path:
        write_arrays(tmp_path / "params", SOME, **options)
        return tmp_path / "params"

    return write


@pytest.mark.parametrize("form", ["tree", "plain"])
@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_arrays_of_several_chunks_are_read_whole(form: str, driver: str, store: Write) -> None:
    params = store(form=form, driver=driver, cut=lambda shape: (2, *shape[1:]))
    arrays = open_arrays(params)
    assert {path: (array.shape, array.num_bytes) for path, array in arrays.items()} == {
        "a/kernel": ((6, 4), 96),
        "b/bias": ((3,), 12),
    }
    for path, array in arrays.items():
        assert torch.equal(array.read(), torch.from_numpy(SOME[path]))


def test_value_is_a_name_unless_every_array_ends_in_it(tmp_path: Path) -> None:
    array = np.ones(3, np.float32)
    write_arrays(tmp_path / "params", {"query/value": array, "query/bias": array})
    assert sorted(open_arrays(tmp_path / "params")) == ["query/bias", "query/value"]


def test_a_chunk_that_is_lost_is_an_error_and_not_zeros(store: Write) -> None:
    params = store(form="plain")
    (chunk,) = (path for path in (params / "params.a.kernel").iterdir() if path.name != ".zarray")
    chunk.unlink()
    with pytest.raises(ValueError, match=r"cannot read params\.a\.kernel: .*; copy the checkpoint again"):
        open_arrays(params)["a/kernel"].read()


def test_chunks_of_zeros_that_an_older_orbax_left_out_are_zeros(tmp_path: Path, store: Write) -> None:
    arrays = open_arrays(store(store_zeros=False))
    assert torch.equal(arrays["b/bias"].read(), torch.zeros(3))
    write_arrays(tmp_path / "plain", SOME, "plain", store_zeros=False)  # where a lost file looks the same
    with pytest.raises(ValueError, match=r"cannot read params\.b\.bias"):
        open_arrays(tmp_path / "plain")["b/bias"].read()


@pytest.mark.parametrize("remove", [True, False])
def test_a_data_file_that_is_lost_or_cut_is_an_error(
    remove: bool, arrays_of_noise: dict[str, Any], tmp_path: Path
) -> None:
    write_arrays(tmp_path / "params", arrays_of_noise)
    for path in (tmp_path / "params" / "d").iterdir():
        if remove:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"cannot read .*; copy the checkpoint again"):
        open_arrays(tmp_path / "params")["a/kernel"].read()


@pytest.fixture
def arrays_of_noise() -> dict[str, Any]:
    """Arrays that are too large to be stored within the manifest."""
    return {"a/kernel": RNG.normal(size=(100, 100)).astype(np.float32)}


def test_a_store_without_its_manifest_is_not_taken_for_an_empty_one(store: Write) -> None:
    params = store()
    (params / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match=r"has lost its manifest\.ocdbt, which _METADATA says it has; copy"):
        open_arrays(params)


def test_a_description_that_is_not_json_is_refused(store: Write) -> None:
    params = store()
    for content in ("{", "[1]", "3"):
        (params / "_METADATA").write_text(content)
        with pytest.raises(
            ValueError, match=r"params/_METADATA (is not|must be a) JSON.*orbax's description .*: copy it"
        ):
            open_arrays(params)


def test_numbers_of_another_kind_are_refused_by_name(store: Write) -> None:
    with pytest.raises(ValueError, match=r"params\.a\.kernel must be one of float32, bfloat16, got int8 in "):
        open_arrays(store(dtype=np.int8))


def test_arrays_outside_of_params_are_refused(store: Write) -> None:
    with pytest.raises(
        ValueError, match=r"outside of `params`: opt_state\.a\.kernel, opt_state\.b\.bias; give"
    ):
        open_arrays(store(root="opt_state."))


def test_a_folder_of_steps_names_the_newest(tmp_path: Path) -> None:
    for number in (999, 10000, 5000):
        write_arrays(tmp_path / str(number) / "params", SOME)
    (tmp_path / "20000").mkdir()
    message = f"SRC must be one step's folder, {tmp_path} holds 3; give {tmp_path / '10000'}"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        find_params(tmp_path)


def test_a_folder_without_a_store_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match=r"SRC must be a step's folder .* has model\.safetensors, params"
    ):
        find_params(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"SRC: no folder 'gs:/.*fetch a gs:// checkpoint first"):
        find_params(Path("gs://openpi-assets/checkpoints/pi05_libero"))


def test_without_tensorstore_the_error_names_the_extra(
    store: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    monkeypatch.setattr("sys.argv", ["convert", str(store()), str(tmp_path / "out")])
    assert main() == 1
    assert capsys.readouterr().err == (
        'error: reading a JAX checkpoint needs tensorstore: pip install -c constraints.txt -e ".[jax]"\n'
    )


def test_another_tree_is_refused_before_anything_is_written(store: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not hold openpi's pi0\.5"):
        convert_checkpoint(store(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["params"]
