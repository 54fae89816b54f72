"""The weights of a target: openpi's are converted, and the tokenizer is fetched where nobody brings one."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from eval.published.cli import TABLE_FILES, main
from eval.published.fetch import Listing, Refused, fetch
from eval.published.sources import RemoteFile
from eval.published.targets import TARGETS
from eval.published.weights import CONVERTED, convert, convert_bytes, list_tokenizer
from eval.records.reader import read_run
from policies.pi05.dims import Pi05Dims
from policies.pi05.random_weights import TOKENIZER_PATH
from tests.eval.published.conftest import Mirror
from tests.policies.pi05.conftest import FIXTURE, STATS
from tests.policies.pi05.jax_folder import to_jax, write_arrays, write_norm_stats

OPENPI = TARGETS["openpi_pi05_libero"]
UNUSED = "paligemma_with_expert.gemma_expert.lm_head.weight"  # in openpi's PyTorch network, not in JAX's


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A small network, as openpi publishes its own."""
    tensors = load_file(FIXTURE / "model.safetensors")
    del tensors[UNUSED]
    dims = Pi05Dims.from_native(json.loads((FIXTURE / "config.json").read_text()), "fixture")
    folder = tmp_path / "pi05_libero"
    write_arrays(folder / "params", to_jax(tensors, dims))
    write_norm_stats(folder, STATS)
    return folder


def listing(folder: Path, names: Sequence[str] = ()) -> Listing:
    files = tuple(RemoteFile(name, 10, "") for name in names)
    return Listing(str(folder), folder, folder / "source.json", files)


def test_weights_are_converted_once(step: Path, tmp_path: Path) -> None:
    weights = listing(step, ["params/a", "params/b", "assets/c"])
    assert convert_bytes(OPENPI, tmp_path, weights) == 20
    convert(OPENPI, tmp_path, weights)
    converted = tmp_path / CONVERTED / "model.safetensors"
    assert load_file(converted).keys() == load_file(FIXTURE / "model.safetensors").keys() - {UNUSED}
    before = converted.stat()
    assert convert_bytes(OPENPI, tmp_path, weights) == 0
    convert(OPENPI, tmp_path, weights)
    assert converted.stat() == before


def test_a_tokenizer_is_fetched_where_nobody_brings_one(mirror: Mirror, tmp_path: Path) -> None:
    mirror({"paligemma_tokenizer.model": TOKENIZER_PATH.read_bytes()})
    url = "memory://mirror/paligemma_tokenizer.model"
    wanted = list_tokenizer(tmp_path, listing(tmp_path, ["params/a"]), None, url)
    assert wanted is not None
    fetch(*wanted)
    assert wanted[1].paths == [tmp_path / "tokenizer" / "paligemma_tokenizer.model"]
    assert wanted[1].paths[0].read_bytes() == TOKENIZER_PATH.read_bytes()


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer/tokenizer.json"])
def test_a_folder_with_a_tokenizer_needs_no_other(tmp_path: Path, name: str) -> None:
    assert list_tokenizer(tmp_path, listing(tmp_path, [name]), None, "memory://nowhere") is None


def test_a_tokenizer_that_cannot_be_had_is_one_line_with_its_size(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        list_tokenizer(tmp_path, listing(tmp_path, ["tokenizer_config.json"]), None, "memory://nowhere")
    [line] = str(refused.value).splitlines()
    assert line.startswith("PaliGemma's tokenizer (4.3 MB) is needed and memory://nowhere did not give it: ")
    assert line.endswith("--tokenizer FILE (tokenizer.model of google/paligemma-3b-pt-224, gated on the hub)")


@pytest.mark.sim
def test_a_copy_of_openpis_folder_is_fetched_converted_and_evaluated(
    step: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "published"
    short = ["protocol=smoke", "runner=local", "runner.warmup_inferences=0"]
    flags = ["--folder", str(folder), "--source", f"file://{step}", "--tokenizer", str(TOKENIZER_PATH)]
    arguments = [OPENPI.name, *flags, "--suites", "libero_goal", *short, "tracking=none"]
    assert main([*arguments, "policy.device=cpu"]) == 0
    (episode,) = read_run(folder / "libero_goal").episodes
    assert (episode.suite, episode.success, episode.steps) == ("libero_goal", False, 300)
    text = (folder / TABLE_FILES[0]).read_text()
    cells = ["0 / 1, not complete", "-", "98.0 %", "96.4 to 98.9 %", "98.6 %", "97.1 to 99.3 %"]
    assert f"| libero_goal | {' | '.join(cells)} |" in text
    assert "- the network has other sizes than the published one" in text
    assert f"- the weights are from file://{step}, a copy: nobody compared it with {OPENPI.url}" in text
    said = capfd.readouterr().err
    assert "to convert them" in said
    assert "converted 51 arrays to" in said
