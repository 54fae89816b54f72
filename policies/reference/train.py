"""Train the reference checkpoint: `python -m policies.reference.train DEMOS OUT --minutes M`.

With several GPUs: `torchrun --standalone --nproc-per-node N -m policies.reference.train ...` (`ranks.py`).

Flow matching as pi0.5 trains (openpi models/pi0.py): x_t = t * noise + (1 - t) * actions, the network
predicts noise - actions, t ~ 0.999 * Beta(1.5, 1) + 0.001. AdamW, warm-up and cosine over the time budget,
EMA; the EMA is what is saved. An auxiliary head, thrown away afterwards, reads from the last layer's keys and
values where the things lie that the goal names (`targets.py`): it teaches the small vision tower, which
starts from nothing, what to look at, and the prefix, which reads the instruction, of what.

The folder OUT holds the checkpoint in the native format, written anew every minute, and `train_state.pt`,
from which an interrupted run goes on (`saving.py`).

B batch, R noise draws per observation, K horizon, A padded action dims, X numbers of `targets`.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.sim.tasks import load_tasks
from policies.pi05.denoise import AdaptiveNorm, Denoise
from policies.pi05.prompt import PromptTokenizer
from policies.pi05.random_weights import TOKENIZER_PATH, random_stages
from policies.reference.data import DemoPool, padded_actions
from policies.reference.demos import DEFAULT_SUITES, MAX_STEPS
from policies.reference.ranks import Ranks
from policies.reference.saving import STATE_FILE, frozen_stats, load_weights, resume, save
from policies.reference.sizes import DIMS
from policies.reference.targets import NUM_TARGETS
from policies.seeding import stable_seed

TRUTH_SCALE = 10.0  # metres to about order one
AGREE_EVERY = 10  # steps between looks at the clock, where several processes must agree about it
LOG_EVERY_S, SAVE_EVERY_S = 30, 60


@dataclass(frozen=True)
class Recipe:
    """Options of a training run; printed, and kept with its state."""

    minutes: float
    batch: int = 256  # of each process
    draws: int = 4
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 300
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    truth_weight: float = 0.5
    seed: int = 0


class TruthHead(nn.Module):
    """Learned queries over the last layer's keys and values, then a small network to the targets."""

    def __init__(self, head_dim: int, queries: int = 8, outputs: int = NUM_TARGETS) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 1, queries, head_dim) * head_dim**-0.5)
        self.mlp = nn.Sequential(nn.Linear(queries * head_dim, 128), nn.GELU(), nn.Linear(128, outputs))

    def forward(self, keys_BGPD: Tensor, values_BGPD: Tensor, mask_BP: Tensor) -> Tensor:
        queries = self.queries.expand(len(keys_BGPD), -1, -1, -1).to(keys_BGPD.dtype)
        read = F.scaled_dot_product_attention(
            queries, keys_BGPD, values_BGPD, attn_mask=mask_BP[:, None, None]
        )
        return self.mlp(read.flatten(1))


class Learner(nn.Module):
    """The three stages with the losses around them."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.truth_head = TruthHead(DIMS.prefix.head_dim)

    def forward(
        self,
        images_BNCHW: Tensor,
        tokens_BT: Tensor,
        token_mask_BT: Tensor,
        actions_BKA: Tensor,  # normalised and padded
        labelled_BK: Tensor,
        truths_BX: Tensor,  # metres, NaN where there is none
        noise_RBKA: Tensor,  # N(0, 1)
        times_RB: Tensor,  # in (0, 1]
    ) -> Tensor:
        """Compute (flow loss, truth loss)."""
        image_tokens = self.stages["vision"](images_BNCHW)
        keys, values, mask_BP = self.stages["prefix"](image_tokens, None, tokens_BT, token_mask_BT)
        seen = self.truth_head(keys[-1], values[-1], mask_BP)
        known_BX = ~truths_BX.isnan()
        wanted_BX = TRUTH_SCALE * truths_BX.nan_to_num()
        errors_BX = F.smooth_l1_loss(seen.float(), wanted_BX, beta=0.1, reduction="none")
        truth_loss = (errors_BX * known_BX).sum() / known_BX.sum()

        denoise = self.stages["denoise"]
        assert isinstance(denoise, Denoise)
        draws = len(noise_RBKA)
        t = times_RB[..., None, None]
        x_RBKA = t * noise_RBKA + (1.0 - t) * actions_BKA
        rope, bias = denoise.suffix_geometry(noise_RBKA[0], keys, mask_BP)
        velocity = denoise.velocity(
            x_RBKA.flatten(0, 1),
            denoise.modulations(times_RB.flatten()),
            keys.repeat(1, draws, 1, 1, 1),
            values.repeat(1, draws, 1, 1, 1),
            (_repeated(rope[0], draws), _repeated(rope[1], draws)),
            None if bias is None else _repeated(bias, draws),
        )
        target_RBKA = noise_RBKA - actions_BKA
        errors_RBK = (velocity.unflatten(0, (draws, -1)) - target_RBKA).square().mean(dim=-1)
        weights_BK = labelled_BK.float()
        flow_loss = (errors_RBK * weights_BK).sum() / (draws * weights_BK.sum())
        return torch.stack((flow_loss, truth_loss))


def _repeated(table: Tensor, draws: int) -> Tensor:
    return table.repeat(draws, *[1] * (table.dim() - 1))


def train(pool: DemoPool, out: Path, recipe: Recipe, init: Path | None, ranks: Ranks) -> None:
    """Train until the time budget is spent, saving as it goes.

    Raises what went wrong while the pool read demonstrations.
    """
    device = ranks.device
    torch.manual_seed(recipe.seed)
    learner = Learner(fresh_stages(recipe.seed, device)).to(device)
    if init is not None:
        load_weights(learner.stages, init, device)
    ema = {name: value.detach().clone() for name, value in learner.stages.state_dict().items()}
    parameters = list(learner.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda"
    )
    step, before_s = resume(out / STATE_FILE, learner, ema, optimizer)
    ranks.copy_first(learner)
    stats = ranks.share(frozen_stats(pool.folder, out, init) if ranks.first else None)
    assert stats is not None
    own_seed = stable_seed("training batches", recipe.seed, ranks.rank, step)
    torch.manual_seed(own_seed)
    generator = torch.Generator(device).manual_seed(own_seed)
    low, high = (
        torch.tensor(stats.actions[name], dtype=torch.float32, device=device) for name in ("q01", "q99")
    )
    forward = torch.compile(learner) if device.type == "cuda" else learner
    beta = torch.distributions.Beta(torch.tensor(1.5, device=device), torch.tensor(1.0, device=device))
    averages = list(ema.values())
    currents = [learner.stages.state_dict()[name] for name in ema]  # updated in place
    start = time.monotonic() - before_s
    last_save = last_log = time.monotonic()
    losses: list[Tensor] = []
    while True:
        if ranks.world == 1 or step % AGREE_EVERY == 0 or not losses:
            elapsed_s = ranks.share(time.monotonic() - start)
            if elapsed_s >= 60 * recipe.minutes:
                break
        rate = learning_rate(recipe, step, elapsed_s)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = pool.sample(recipe.batch, generator)
        actions = (batch.actions_BKJ - low) / (high - low + stats.eps) * 2.0 - 1.0
        actions_BKA = padded_actions(actions, DIMS.action_dim)
        noise = torch.randn((recipe.draws, *actions_BKA.shape), generator=generator, device=device)
        times_RB = beta.sample((recipe.draws, recipe.batch)) * 0.999 + 0.001
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            flow_and_truth = forward(
                batch.images_BNCHW,
                batch.tokens_BT,
                batch.token_mask_BT,
                actions_BKA,
                batch.labelled_BK,
                batch.truths_BX,
                noise,
                times_RB,
            )
        loss = flow_and_truth[0] + recipe.truth_weight * flow_and_truth[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        ranks.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        step += 1
        decay = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, currents, 1.0 - decay)
        losses.append(flow_and_truth.detach())
        if time.monotonic() - last_log > LOG_EVERY_S:
            if pool.error is not None:
                raise pool.error
            flow, truth_loss = torch.stack(losses).mean(dim=0).tolist()
            if ranks.first:
                _say(
                    f"{elapsed_s:6.0f} s  step {step:6d}  flow {flow:.4f}  truth {truth_loss:.4f}  "
                    f"rate {rate:.1e}  {pool.num_episodes} episodes, {pool.num_moments} moments"
                )
            losses, last_log = losses[-1:], time.monotonic()
        if ranks.first and time.monotonic() - last_save > SAVE_EVERY_S:
            save(out, ema, stats, learner, optimizer, step, elapsed_s)
            last_save = time.monotonic()
    if ranks.first:
        save(out, ema, stats, learner, optimizer, step, elapsed_s)
        _say(
            f"done: {step} steps of {ranks.world} x {recipe.batch} observations, "
            f"{pool.num_episodes} episodes in the first process"
        )


def learning_rate(recipe: Recipe, step: int, elapsed_s: float) -> float:
    """Linear warm-up over steps, then a cosine over the time budget."""
    done = min(1.0, elapsed_s / (60 * recipe.minutes))
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    rate = recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * cosine
    return rate * min(1.0, (step + 1) / recipe.warmup_steps)


def fresh_stages(seed: int, device: torch.device) -> dict[str, nn.Module]:
    """Build trainable random stages; adaRMS linears are zero, so every expert layer starts as identity."""
    stages = random_stages(DIMS, 10, seed, device, torch.float32)
    for stage in stages.values():
        stage.train().requires_grad_(True)
        for module in stage.modules():
            if isinstance(module, AdaptiveNorm):
                nn.init.zeros_(module.dense.weight)
                nn.init.zeros_(module.dense.bias)
    return stages


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reference checkpoint on demonstrations.")
    parser.add_argument("demos", type=Path, help="folder of policies.reference.demos, which may still grow")
    parser.add_argument("out", type=Path, help="checkpoint folder")
    parser.add_argument("--minutes", type=float, required=True, help="time budget; the schedule spans it")
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--capacity", type=int, default=150_000, help="moments to hold on each device")
    parser.add_argument("--init", type=Path, help="checkpoint folder to start from instead of random weights")
    parser.add_argument("--suites", nargs="+", choices=list(MAX_STEPS), default=list(DEFAULT_SUITES))
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    recipe = Recipe(
        minutes=options.minutes, batch=options.batch, learning_rate=options.learning_rate, seed=options.seed
    )
    ranks = Ranks.join()
    if ranks.first:
        _say(
            f"{ranks.world} x device {ranks.device.type}, torch {torch.__version__}, recipe {asdict(recipe)}"
        )
    instructions = {
        (task.suite, task.task_id): task.language for suite in options.suites for task in load_tasks(suite)
    }
    tokenizer = PromptTokenizer(TOKENIZER_PATH)
    pool = DemoPool(
        options.demos,
        DIMS,
        tokenizer,
        instructions,
        options.capacity,
        ranks.device,
        ranks.rank,
        ranks.world,
    )
    if not pool.grow():
        sys.exit(
            f"error: no successful demonstration in {options.demos} for process {ranks.rank} of "
            f"{ranks.world}; run policies.reference.demos first"
        )
    reading = pool.keep_growing()
    try:
        train(pool, options.out, recipe, options.init, ranks)
    finally:
        pool.stop()
        reading.join()
    ranks.leave()


if __name__ == "__main__":
    main()
