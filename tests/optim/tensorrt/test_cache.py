"""Engine files are found by all that an engine depends on; damaged ones are errors."""

import dataclasses
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optim.base import StageContext
from optim.tensorrt.backend import TensorRT, engine_ingredients
from optim.tensorrt.cache import EngineCache, cache_key
from optim.tensorrt.modules import cast_linears
from tests.optim.tensorrt.engines import ENGINE

ENVIRONMENT = {
    "torch": "2.11",
    "torch_tensorrt": "2.11",
    "tensorrt": "TensorRT 10.15",
    "gpu": "H200",
    "capability": [9, 0],
}
INPUTS = (torch.zeros(1, 20, 128), torch.zeros(1, 1, 20, 32))


def _ingredients(source: StageContext, **changes: Any) -> dict[str, Any]:
    options = {"options": TensorRT("fp8"), "inputs": INPUTS, "environment": ENVIRONMENT}
    return engine_ingredients(source=source, **{**options, **changes})


def test_key_changes_with_each_ingredient(small_sources: dict[str, StageContext]) -> None:
    source = small_sources["prefix"]
    scaled = {name: value * 1.0001 for name, value in source.amax.items()}
    half = replace(source, stage=cast_linears(source.stage, torch.bfloat16))
    changed = [
        _ingredients(source),
        _ingredients(replace(source, weights_sha256="other")),
        _ingredients(replace(source, amax=scaled)),
        _ingredients(half),
        _ingredients(source, inputs=(INPUTS[0][:, :19], INPUTS[1])),
        _ingredients(source, inputs=(INPUTS[0].bfloat16(), INPUTS[1])),
        _ingredients(source, options=TensorRT("bf16")),
        _ingredients(source, options=TensorRT("fp8", fp8_linears="all")),
        *(_ingredients(source, environment={**ENVIRONMENT, name: "other"}) for name in ENVIRONMENT),
        _ingredients(small_sources["vision"]),
    ]
    keys = [cache_key(ingredients) for ingredients in changed]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache_key(_ingredients(source))
    same = [
        TensorRT("fp8", cache_dir=None),
        TensorRT("fp8", cuda_graph=False),
    ]
    assert {cache_key(_ingredients(source, options=options)) for options in same} == {keys[0]}


def test_key_changes_with_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key({"a": 1})
    monkeypatch.setattr("optim.tensorrt.cache.FORMAT", 1000)
    assert cache_key({"a": 1}) != before


def test_stored_engine_is_found_again_and_no_other(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.load({"a": 1}) is None
    cache.store({"a": 1}, ENGINE)
    assert cache.load({"a": 1}) == ENGINE
    assert cache.load({"a": 2}) is None
    (sidecar,) = cache.folder.glob("*.json")
    facts = json.loads(sidecar.read_text())
    assert facts["ingredients"]["a"] == 1
    assert (facts["engine_bytes"], facts["sha256"]) == (4, hashlib.sha256(b"plan").hexdigest())
    assert set(facts) >= {field.name for field in dataclasses.fields(ENGINE)} - {"plan"}


def test_engine_of_another_process_is_kept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store({"a": 1}, ENGINE)
    cache.store({"a": 1}, replace(ENGINE, plan=b"built a moment later"))
    assert cache.load({"a": 1}) == ENGINE
    assert len(list(tmp_path.iterdir())) == 2


def test_engine_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EngineCache(tmp_path)

    def interrupted(self: Path, target: Path) -> None:
        assert self.parent == target.parent  # a rename within one file system
        assert self.stat().st_size > 0
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.store({"a": 1}, ENGINE)
    assert list(tmp_path.iterdir()) == []
    assert cache.load({"a": 1}) is None


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".engine", b"plaN", r"engine cache file .*\.engine is damaged: its SHA-256 is not"),
        (".engine", None, r"engine cache file .*\.engine is missing"),
        (".json", b'{"engine": "x', r"engine cache file .*\.json is damaged \(JSONDecodeError"),
        (".json", b"{}", r"engine cache file .*\.json is damaged \(KeyError"),
        (".json", b"[]", r"engine cache file .*\.json is damaged \(TypeError"),
    ],
)
def test_damaged_engine_file_is_an_error_that_names_it(
    suffix: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path)
    cache.store({"a": 1}, ENGINE)
    (path,) = tmp_path.glob(f"*{suffix}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match=message):
        cache.load({"a": 1})


def test_engine_file_of_other_ingredients_is_an_error(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store({"a": 1}, ENGINE)
    (sidecar,) = tmp_path.glob("*.json")
    sidecar.write_text(sidecar.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(RuntimeError, match="describes another engine; delete it"):
        cache.load({"a": 1})
