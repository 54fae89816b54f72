"""Training: the pool grows, the loss is pi0.5's, an interrupted run goes on, the result is a checkpoint."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.pi05.prompt import PromptTokenizer
from policies.pi05.random_weights import TOKENIZER_PATH
from policies.reference import saving as saving_module
from policies.reference import train as train_module
from policies.reference.data import DemoPool, augment, padded_actions
from policies.reference.demos import Demo, save_demo
from policies.reference.ranks import Ranks
from policies.reference.saving import frozen_stats
from policies.reference.sizes import DIMS
from policies.reference.targets import NUM_TARGETS
from policies.reference.train import TRUTH_SCALE, Learner, Recipe, fresh_stages, learning_rate, train
from tests.optim.small import reference_checkpoint

CPU = torch.device("cpu")
INSTRUCTIONS = {("libero_spatial", 0): "do this", ("libero_goal", 1): "do that, please"}
SUITE_OF = {task_id: suite for suite, task_id in INSTRUCTIONS}
ALONE = Ranks(rank=0, world=1, device=CPU)
# Small in all but the image: the sizes of the shipped network take minutes here.
TINY = replace(
    DIMS,
    vision=replace(DIMS.vision, hidden_size=32, intermediate_size=32, layers=1, heads=2),
    prefix=replace(DIMS.prefix, width=32, depth=2, mlp_dim=32, num_heads=2, head_dim=16),
    expert=replace(DIMS.expert, width=32, depth=2, mlp_dim=32, num_heads=2, head_dim=16),
    image_size=32,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (train_module, saving_module):
        monkeypatch.setattr(module, "DIMS", TINY)


def make_demo(task_id: int, seed: int, success: bool = True) -> Demo:
    """Return a demonstration whose moments tell their seed and step, in pixels and in truths.

    Green is above red by 100 levels, blue by ten times the seed in the first camera and ten times the step in
    the second: the ratio of these differences survives shifts, brightness and contrast.
    """
    rng = np.random.default_rng(seed)
    steps = np.array([0, 2, 4, 6, 8, 10])
    images = np.full((6, 2, 32, 32, 3), 78, np.uint8)
    images[..., 1] += 100
    images[:, 0, ..., 2] += np.uint8(10 * seed)
    images[:, 1, ..., 2] += (10 * steps).astype(np.uint8)[:, None, None]
    truths = rng.normal(size=(6, NUM_TARGETS))
    truths[:, 0], truths[:, 1] = seed, steps
    truths[:, 6:12] = np.nan  # one errand
    return Demo(
        suite=SUITE_OF[task_id],
        task_id=task_id,
        seed=seed,
        success=success,
        images_FNHWC=images,
        states_FS=rng.normal(size=(6, 8)),
        truths_FX=truths,
        steps_F=steps,
        num_labels_F=np.array([10, 10, 8, 7, 6, 5]),
        actions_TJ=rng.uniform(-1, 1, (15, 7)),
    )


def write_demo(folder: Path, task_id: int, seed: int, success: bool = True) -> None:
    save_demo(folder / f"task{task_id}_seed{seed}.npz", make_demo(task_id, seed, success))


def shown_moments(images_BNCHW: Tensor) -> list[tuple[int, int]]:
    """Return the (seed, step) that each row shows, read off its augmented pixels."""
    red, green, blue = images_BNCHW.flatten(3).mean(dim=3).unbind(dim=2)
    numbers = 10 * (blue - red) / (green - red)
    torch.testing.assert_close(numbers, numbers.round(), rtol=0, atol=1e-3)
    return [(seed, step) for seed, step in numbers.round().int().tolist()]


@pytest.fixture
def pool(tmp_path: Path) -> DemoPool:
    folder = tmp_path / "demos"
    folder.mkdir()
    for seed in range(3):
        write_demo(folder, task_id=seed % 2, seed=seed)
    pool = DemoPool(folder, TINY, PromptTokenizer(TOKENIZER_PATH), INSTRUCTIONS, 100, CPU)
    assert pool.grow() == 3
    return pool


def test_the_pool_takes_new_successful_demonstrations_once(pool: DemoPool) -> None:
    write_demo(pool.folder, task_id=0, seed=7)
    write_demo(pool.folder, task_id=0, seed=8, success=False)
    assert pool.grow() == 1
    assert pool.grow() == 0
    assert (pool.num_episodes, pool.num_moments) == (4, 24)


def test_a_batch_pairs_each_moment_with_the_actions_that_followed(pool: DemoPool) -> None:
    """Moments are known by what the images show, whatever the pool's columns say."""
    write_demo(pool.folder, task_id=0, seed=5, success=False)  # takes no rows
    write_demo(pool.folder, task_id=1, seed=7)
    assert pool.grow() == 1
    demos = {seed: make_demo(seed % 2, seed) for seed in (0, 1, 2, 7)}
    batch = pool.sample(256, torch.Generator().manual_seed(0))
    moments = shown_moments(batch.images_BNCHW)
    assert set(moments) == {(seed, step) for seed, demo in demos.items() for step in demo.steps_F.tolist()}
    tokenizer = PromptTokenizer(TOKENIZER_PATH)
    for row, (seed, step) in enumerate(moments):
        demo = demos[seed]
        moment = demo.steps_F.tolist().index(step)
        followed = demo.actions_TJ[step : step + 10]
        followed = np.concatenate((followed, np.repeat(demo.actions_TJ[-1:], 10 - len(followed), axis=0)))
        np.testing.assert_array_equal(batch.actions_BKJ[row], followed.astype(np.float32))
        np.testing.assert_array_equal(batch.truths_BX[row], demo.truths_FX[moment].astype(np.float32))
        assert batch.labelled_BK[row].tolist() == [k < demo.num_labels_F[moment] for k in range(10)]
        prompt = batch.tokens_BT[row][batch.token_mask_BT[row]].tolist()
        assert prompt == list(
            tokenizer.encode(INSTRUCTIONS[demo.suite, demo.task_id], None, TINY.max_token_len)
        )


def test_augmentation_keeps_the_range_and_moves_pixels_by_few(pool: DemoPool) -> None:
    images = torch.zeros(8, 2, 32, 32, 3, dtype=torch.uint8)
    images[:, :, 16, 16] = 255
    seen = augment(images, torch.Generator().manual_seed(0))
    assert seen.shape == (8, 2, 3, 32, 32)
    assert seen.abs().max() <= 1.0
    brightest = seen.mean(dim=2).flatten(2).argmax(dim=2)
    shift = torch.stack((brightest // 32 - 16, brightest % 32 - 16))
    assert shift.abs().max() <= 4
    assert len(shift.flatten(1).T.unique(dim=0)) > 8


def test_flow_loss_is_zero_for_the_true_velocity_and_ignores_what_is_not_labelled(pool: DemoPool) -> None:
    learner = Learner(fresh_stages(0, CPU))
    batch = pool.sample(4, torch.Generator().manual_seed(0))
    actions = padded_actions(batch.actions_BKJ, TINY.action_dim)
    noise = torch.randn(2, *actions.shape)
    times = torch.rand(2, 4) * 0.9 + 0.05
    denoise = learner.stages["denoise"]
    target = (noise - actions).flatten(0, 1)
    denoise.velocity = lambda *_: target + 5.0 * ~batch.labelled_BK.repeat(2, 1)[..., None]  # type: ignore[method-assign, operator]
    args = (batch.images_BNCHW, batch.tokens_BT, batch.token_mask_BT, actions)
    flow, _ = learner(*args, batch.labelled_BK, batch.truths_BX, noise, times)
    assert flow.item() == 0.0
    flow, _ = learner(*args, torch.ones_like(batch.labelled_BK), batch.truths_BX, noise, times)
    assert flow.item() > 1.0


def test_truth_loss_counts_what_the_goal_names_and_nothing_else(pool: DemoPool) -> None:
    learner = Learner(fresh_stages(0, CPU))
    batch = pool.sample(4, torch.Generator().manual_seed(0))
    actions = padded_actions(batch.actions_BKJ, TINY.action_dim)
    noise, times = torch.randn(2, *actions.shape), torch.rand(2, 4) * 0.9 + 0.05
    known = ~batch.truths_BX.isnan()
    assert 0 < known.sum() < known.numel()
    learner.truth_head.forward = lambda *_: torch.where(known, batch.truths_BX * TRUTH_SCALE, 7.0)  # type: ignore[method-assign]
    args = (batch.images_BNCHW, batch.tokens_BT, batch.token_mask_BT, actions, batch.labelled_BK)
    _, loss = learner(*args, batch.truths_BX, noise, times)
    assert loss.item() == 0.0
    _, loss = learner(*args, torch.where(known, batch.truths_BX + 1.0, torch.nan), noise, times)
    assert loss.item() == pytest.approx(TRUTH_SCALE - 0.05, abs=1e-3)  # smooth L1, beta 0.1


def test_the_shards_of_a_folder_are_all_of_it_and_share_nothing(pool: DemoPool) -> None:
    for seed in range(3, 14):
        write_demo(pool.folder, task_id=seed % 2, seed=seed)
    shares = []
    for shard in range(3):
        part = DemoPool(
            pool.folder, TINY, PromptTokenizer(TOKENIZER_PATH), INSTRUCTIONS, 200, CPU, shard, shards=3
        )
        part.grow()
        batch = part.sample(256, torch.Generator().manual_seed(0))
        shares.append({seed for seed, _ in shown_moments(batch.images_BNCHW)})
        assert part.num_episodes == len(shares[-1]) > 0
    assert sorted(seed for share in shares for seed in share) == list(range(14))


def test_the_pool_grows_while_others_sample_and_keeps_what_goes_wrong(pool: DemoPool) -> None:
    thread = pool.keep_growing(every_s=0.01)
    write_demo(pool.folder, task_id=0, seed=4)
    for _ in range(500):
        if pool.num_episodes == 4:
            break
        time.sleep(0.01)
    assert pool.num_moments == 24
    (pool.folder / "task0_seed5.npz").write_bytes(b"no demonstration")
    thread.join(timeout=5)
    assert isinstance(pool.error, Exception)


def test_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    recipe = Recipe(minutes=1.0)
    assert learning_rate(recipe, 0, 0.0) == pytest.approx(recipe.learning_rate / recipe.warmup_steps)
    assert learning_rate(recipe, 10_000, 0.0) == pytest.approx(recipe.learning_rate)
    assert learning_rate(recipe, 10_000, 60.0) == pytest.approx(recipe.final_learning_rate)


def test_what_starts_from_weights_keeps_their_statistics(pool: DemoPool, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(pool, first, Recipe(minutes=0.01, batch=4), None, ALONE)
    for path in pool.folder.glob("*.npz"):
        path.unlink()
    write_demo(pool.folder, task_id=0, seed=9)
    assert frozen_stats(pool.folder, second).actions["q99"].tolist() != (
        frozen_stats(pool.folder, first).actions["q99"].tolist()
    )
    train(pool, second, Recipe(minutes=0.01, batch=4), first, ALONE)
    assert (second / "norm_stats.json").read_bytes() == (first / "norm_stats.json").read_bytes()


def test_training_goes_on_where_it_stopped_and_leaves_a_checkpoint(
    pool: DemoPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    train(pool, out, Recipe(minutes=0.03, batch=4), None, ALONE)
    first = torch.load(out / "train_state.pt", weights_only=True)
    stats = (out / "norm_stats.json").read_bytes()
    train(pool, out, Recipe(minutes=0.06, batch=4), None, ALONE)
    second = torch.load(out / "train_state.pt", weights_only=True)
    assert second["step"] > first["step"] > 0
    assert second["elapsed_s"] > first["elapsed_s"]
    assert (out / "norm_stats.json").read_bytes() == stats
    checkpoint = reference_checkpoint(folder=out)
    for stage, module in checkpoint.stages.items():
        for name, parameter in module.state_dict().items():
            expected = second["ema"][f"{stage}.{name}"].to(torch.bfloat16).float()
            torch.testing.assert_close(parameter, expected, rtol=0, atol=0)
