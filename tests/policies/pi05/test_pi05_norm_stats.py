"""Normalisation statistics and formulas."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.lerobot_normalizer import LerobotNormalizer
from policies.pi05.norm_stats import (
    Normalizer,
    read_json_stats,
    read_lerobot_stats,
    unit_stats,
    write_json_stats,
)
from policies.pi05.postprocess import Postprocess
from tests.policies.pi05.conftest import LEROBOT_STATS
from tests.policies.pi05.folder import Folder
from tests.policies.pi05.test_lerobot_settings import PRE, set_norm_map

STATS = {
    "mean": np.array([1.0, 2.0]),
    "std": np.array([0.5, 4.0]),
    "q01": np.array([-1.0, 0.0]),
    "q99": np.array([3.0, 8.0]),
}


def test_quantiles_map_to_minus_one_and_one() -> None:
    normalizer = Normalizer(STATS, "quantile", 1e-6, 2, "test")
    np.testing.assert_allclose(normalizer.normalize(STATS["q01"]), [-1, -1], atol=1e-6)
    np.testing.assert_allclose(normalizer.normalize(STATS["q99"]), [1, 1], atol=1e-6)
    np.testing.assert_allclose(normalizer.normalize(np.array([11.0, 0.0]))[0], 5.0, atol=1e-5)  # no clipping


def test_mean_std_maps_to_deviations() -> None:
    normalizer = Normalizer(STATS, "mean_std", 1e-8, 2, "test")
    np.testing.assert_allclose(normalizer.normalize(np.array([2.0, 2.0])), [2.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_unnormalize_inverts_normalize(mode: str) -> None:
    normalizer = Normalizer(STATS, mode, 1e-6, 2, "test")
    x = np.random.default_rng(0).normal(size=(5, 2)) * 10
    np.testing.assert_allclose(normalizer.unnormalize(normalizer.normalize(x)), x, rtol=1e-12, atol=1e-12)


def test_padded_statistics_use_their_first_dims() -> None:
    padded = {name: np.concatenate([value, np.zeros(30)]) for name, value in STATS.items()}
    x = np.array([0.3, 0.7])
    normalized = Normalizer(padded, "quantile", 1e-6, 2, "test").normalize(x)
    np.testing.assert_array_equal(normalized, Normalizer(STATS, "quantile", 1e-6, 2, "test").normalize(x))


def test_absent_or_short_statistics_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"checkpoint.norm_mode=quantile needs 'q01', here has \['mean', 'std'\]"
    ):
        Normalizer({k: STATS[k] for k in ("mean", "std")}, "quantile", 1e-6, 2, "here")
    with pytest.raises(
        ValueError, match=r"q01 must have 7 numbers, or 32 with padding, got shape \(2,\) in here"
    ):
        Normalizer(STATS, "quantile", 1e-6, 7, "here")
    with pytest.raises(ValueError, match=r"checkpoint\.norm_mode must be one of"):
        Normalizer(STATS, "minmax", 1e-6, 2, "here")


def test_statistics_of_another_robot_are_refused_by_their_length() -> None:
    stats = {"mean": np.zeros(14), "std": np.ones(14)}
    with pytest.raises(
        ValueError, match=r"got shape \(14,\) in here; they belong to another robot: set checkpoint"
    ):
        Normalizer(stats, "mean_std", 1e-6, 7, "here")
    with pytest.raises(ValueError, match=r"mean must have 7 numbers, .*, got shape \(1, 7\)"):
        Normalizer({"mean": np.zeros((1, 7)), "std": np.ones(7)}, "mean_std", 1e-6, 7, "here")


@pytest.mark.parametrize(
    ("mode", "name", "value", "wanted"),
    [
        ("mean_std", "mean", np.nan, "finite in float64"),
        ("mean_std", "std", np.inf, "finite in float64"),
        ("mean_std", "std", -0.5, "at least 0"),
        ("quantile", "q01", -np.inf, "finite in float64"),
        ("quantile", "q99", np.nan, "finite in float64"),
        ("quantile", "q99", -3.0, r"at least q01\[3\]=-1\.0"),
    ],
)
def test_a_number_that_no_statistic_has_is_named(mode: str, name: str, value: float, wanted: str) -> None:
    stats = {statistic: np.array(numbers) for statistic, numbers in unit_stats().actions.items()}
    stats[name][3] = value
    with pytest.raises(
        ValueError, match=rf"{name}\[3\] must be {wanted}, got {value} in here; set checkpoint"
    ):
        Normalizer(stats, mode, 1e-6, 7, "here")


def test_dimensions_that_never_move_are_allowed() -> None:
    stats = {"mean": np.ones(7), "std": np.zeros(7), "q01": np.ones(7), "q99": np.ones(7)}
    assert Normalizer(stats, "mean_std", 1e-6, 7, "here").normalize(np.ones(7)).tolist() == [0.0] * 7
    assert Normalizer(stats, "quantile", 1e-6, 7, "here").normalize(np.ones(7)).tolist() == [-1.0] * 7


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("mean", 0.3, "0"),
        ("std", 0.3, "0 or 1"),
        ("q01", -0.3, "0"),
        ("q99", 0.3, "0"),
    ],
)
def test_what_follows_the_robots_numbers_must_be_padding(name: str, value: float, wanted: str) -> None:
    mode = "mean_std" if name in ("mean", "std") else "quantile"
    padded = {key: np.concatenate([numbers, np.zeros(25)]) for key, numbers in unit_stats().actions.items()}
    padded["q01"][7:], padded["q99"][7:], padded["std"][8:] = -1e-10, 1e-10, 1.0  # what openpi writes
    Normalizer(padded, mode, 1e-6, 7, "here")
    padded[name][13] = value
    message = rf"{name}\[13\] must be {wanted}, as padding after 7 numbers is, got {value} in here"
    with pytest.raises(ValueError, match=message):
        Normalizer(padded, mode, 1e-6, 7, "here")


def test_bad_statistics_are_refused_with_their_file_before_the_weights_are_read(
    native: Folder, config: Callable[..., CheckpointConfig]
) -> None:
    (native.path / "model.safetensors").write_bytes(b"not read")
    path = native.path / "norm_stats.json"
    path.write_text(path.read_text().replace("0.6", "-1.5", 1))
    with pytest.raises(
        ValueError, match=r"q99\[0\] must be at least q01\[0\]=-1\.0, got -1\.5 in actions in .*json"
    ):
        load_checkpoint(config(layout="native", path=str(native.path)))
    path.write_text(path.read_text().replace("-1.5", "NaN", 1))
    with pytest.raises(
        ValueError, match=r"q99\[0\] must be finite in float64, got nan in actions in .*norm_stats\.json"
    ):
        load_checkpoint(config(layout="native", path=str(native.path)))


def test_json_statistics_survive_a_round_trip(tmp_path: Path) -> None:
    write_json_stats(tmp_path / "norm_stats.json", unit_stats())
    read = read_json_stats(tmp_path / "norm_stats.json")
    for feature in ("state", "actions"):
        for name, value in getattr(unit_stats(), feature).items():
            np.testing.assert_array_equal(getattr(read, feature)[name], value)
    assert len(read.sha256) == 64


def test_json_without_actions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps({"norm_stats": {"state": {"mean": [0.0]}}}))
    with pytest.raises(ValueError, match=r"norm stats must be .*, got norm_stats=.*state.* in .*; copy"):
        read_json_stats(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "json is not JSON"),
        (b"{", "json is not JSON"),
        (b"[]", "json must be a JSON object, got list"),
        (b'{"norm_stats": {"state": [1], "actions": [1]}}', r"norm stats must be .*json; copy"),
        (
            b'{"norm_stats": {"state": {"mean": ["1"]}, "actions": {}}}',
            "state.mean must be a list of numbers",
        ),
        (
            b'{"norm_stats": {"state": {"mean": [true]}, "actions": {}}}',
            r"of numbers, got \[true\] in .*json",
        ),
    ],
)
def test_json_of_another_kind_is_refused_by_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "norm_stats.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json_stats(path)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 64])
def test_corrupt_lerobot_statistics_are_refused_by_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stats.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"norm stats must be a safetensors file, got .*stats.safetensors: "):
        read_lerobot_stats(path)


def test_lerobot_statistics_in_half_precision_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    save_torch({"action.mean": torch.zeros(7, dtype=torch.bfloat16)}, path)
    with pytest.raises(
        ValueError, match=r"action\.mean must be F32 or F64, got BF16 in .*stats\.safetensors"
    ):
        read_lerobot_stats(path)


def test_lerobot_statistics_are_read_by_feature(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    tensors = {
        "observation.state.mean": np.arange(8, dtype=np.float32),
        "action.std": np.ones(7, dtype=np.float32),
        "observation.images.image.mean": np.zeros((3, 1, 1), dtype=np.float32),
    }
    save_file(tensors, path)
    stats = read_lerobot_stats(path)
    assert stats.state["mean"].tolist() == list(range(8))
    assert set(stats.actions) == {"std"}
    save_file({"action.std": np.ones(7, dtype=np.float32)}, path)
    with pytest.raises(
        ValueError, match=r"must have some of observation\.state\.mean, .*; .* has action\.std"
    ):
        read_lerobot_stats(path)


def test_postprocess_unnormalises_seven_dims_and_drops_the_rest() -> None:
    stats = {"mean": np.arange(7.0), "std": np.full(7, 2.0)}
    postprocess = Postprocess(Normalizer(stats, "mean_std", 0.0, 7, "test"))
    actions = postprocess(np.ones((1, 3, 32), np.float32))
    assert actions.shape == (1, 3, 7)
    assert actions.dtype == np.float64
    np.testing.assert_array_equal(actions[0, 0], np.arange(7.0) + 2.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_actions_raise_and_name_the_row(bad: float) -> None:
    postprocess = Postprocess(Normalizer(unit_stats().actions, "quantile", 0.0, 7, "test"))
    actions = np.zeros((2, 3, 32), np.float32)
    actions[1, 2, 31] = bad
    with pytest.raises(FloatingPointError, match=r"got 1 of 192 that are not, in rows \[1\]"):
        postprocess(actions)


def stats_of(**changes: float) -> dict[str, np.ndarray]:
    """Statistics of 7 numbers, whose fourth is changed."""
    stats = {name: np.array(numbers) for name, numbers in unit_stats().actions.items()}
    for name, value in changes.items():
        stats[name][3] = value
    return stats


@pytest.mark.parametrize(
    ("mode", "name", "value"),
    [("mean_std", "std", 1e300), ("mean_std", "mean", -1e39), ("quantile", "q99", 1e39)],
)
def test_a_number_that_float32_cannot_hold_is_refused_where_lerobot_computes_in_it(
    mode: str, name: str, value: float
) -> None:
    stats = stats_of(**{name: value})
    Normalizer(stats, mode, 1e-6, 7, "here")
    message = re.escape(f"{name}[3] must be finite in float32, got {value} in here")
    with pytest.raises(ValueError, match=message):
        LerobotNormalizer(stats, mode, 1e-8, 7, "here")


@pytest.mark.parametrize(
    ("kind", "mode", "changes", "eps", "what"),
    [
        (LerobotNormalizer, "quantile", {"q01": 0.5, "q99": 0.5}, 0.0, "q99[3] - q01[3]"),
        (LerobotNormalizer, "quantile", {"q01": 1.0, "q99": 1.0 + 1e-9}, 0.0, "q99[3] - q01[3]"),
        (LerobotNormalizer, "quantile", {"q01": 0.5, "q99": 0.5}, 1e-50, "q99[3] - q01[3]"),
        (LerobotNormalizer, "quantile", {"q01": -3e38, "q99": 3e38}, 1e-8, "q99[3] - q01[3]"),
        (LerobotNormalizer, "mean_std", {"std": 0.0}, 0.0, "std[3]"),
        (LerobotNormalizer, "mean_std", {"std": 1e-60}, 1e-60, "std[3]"),
        (Normalizer, "quantile", {"q01": 0.5, "q99": 0.5}, 0.0, "q99[3] - q01[3]"),
        (Normalizer, "quantile", {"q01": -1e308, "q99": 1e308}, 1e-6, "q99[3] - q01[3]"),
        (Normalizer, "mean_std", {"std": 0.0}, 0.0, "std[3]"),
    ],
)
def test_statistics_that_divide_by_zero_or_by_infinity_are_refused_by_name(
    kind: type[Normalizer], mode: str, changes: dict[str, float], eps: float, what: str
) -> None:
    message = re.escape(f"{what} must divide with eps={eps:g} in {kind.dtype.__name__}, got ")
    with pytest.raises(ValueError, match=message + r"(0\.0|inf) in here"):
        kind(stats_of(**changes), mode, eps, 7, "here")


def test_a_dimension_that_never_moves_gives_finite_numbers_as_long_as_eps_divides() -> None:
    for mode, changes in (("quantile", {"q01": 0.5, "q99": 0.5}), ("mean_std", {"std": 0.0})):
        for kind, eps in ((Normalizer, 1e-6), (LerobotNormalizer, 1e-8)):
            normalizer = kind(stats_of(**changes), mode, eps, 7, "here")
            assert np.isfinite(normalizer.normalize(np.full(7, 0.6))).all()
            assert np.isfinite(normalizer.unnormalize(np.full(7, 0.6))).all()


@pytest.mark.parametrize(
    ("file", "key"), [(LEROBOT_STATS[0], "observation.state.std"), (LEROBOT_STATS[1], "action.std")]
)
def test_a_float64_that_float32_cannot_hold_is_refused_at_load(
    saved: Folder, load_saved: Callable[..., object], file: str, key: str
) -> None:
    stats = {name: tensor.astype(np.float64) for name, tensor in load_file(saved.path / file).items()}
    stats[key][2] = 1e300
    save_file(stats, saved.path / file)
    with pytest.raises(ValueError, match=r"std\[2\] must be finite in float32, got 1e\+300 in .*_processor"):
        load_saved()


def test_a_range_of_zero_without_eps_is_refused_at_load(
    saved: Folder, load_saved: Callable[..., object]
) -> None:
    stats = load_file(saved.path / LEROBOT_STATS[0])
    stats["observation.state.q99"][5] = stats["observation.state.q01"][5]
    save_file(stats, saved.path / LEROBOT_STATS[0])
    set_norm_map(saved, STATE="QUANTILES")
    load_saved()
    saved.edit_step(PRE, "normalizer_processor", eps=0)
    with pytest.raises(
        ValueError, match=r"q99\[5\] - q01\[5\] must divide with eps=0 in float32, got 0.0 in state"
    ):
        load_saved()
