"""Files written tensor by tensor: safetensors reads them as its own."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from policies.pi05.safetensors_stream import write_safetensors
from policies.pi05.weight_files import file_sha256

TENSORS = {
    "wide": torch.arange(12.0).reshape(3, 4),
    "view": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
    "narrow": torch.tensor([[1.5], [-2.0], [0.1]], dtype=torch.bfloat16),
}
LAYOUT = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in TENSORS.items()}


def test_the_reader_gives_back_values_precisions_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = write_safetensors(path, LAYOUT, iter(TENSORS.items()))
    assert digest == file_sha256(path)
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_tensor_is_let_go_before_the_next_is_asked_for(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def watched() -> Iterator[tuple[str, torch.Tensor]]:
        for key, (dtype, shape) in LAYOUT.items():
            assert all(earlier() is None for earlier in alive)
            tensor = torch.zeros(shape, dtype=dtype)
            alive.append(weakref.ref(tensor))
            yield key, tensor
            del tensor

    write_safetensors(tmp_path / "model.safetensors", LAYOUT, watched())
    assert len(alive) == len(LAYOUT)


@pytest.mark.parametrize(
    "given", [["view", "wide", "narrow"], ["wide", "view"], ["wide", "view", "narrow", "narrow"]]
)
def test_other_tensors_than_the_header_says_are_refused(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_safetensors(tmp_path / "x", LAYOUT, ((key, TENSORS[key]) for key in given))


def test_float32_after_an_odd_number_of_bfloat16_is_refused(tmp_path: Path) -> None:
    layout = {"narrow": LAYOUT["narrow"], "wide": LAYOUT["wide"]}
    with pytest.raises(AssertionError, match="wide is not aligned"):
        write_safetensors(tmp_path / "x", layout, iter(()))
