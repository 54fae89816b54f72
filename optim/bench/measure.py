"""One setting of a bench: policies built side by side, compared with eager float32, timed in turns.

Non-obvious behaviors:
    All policies of a setting share the weights in memory. A policy's peak memory is what the GPU has less of
    once it is built and has inferred, with all that torch holds back and all that others allocate (TensorRT
    does not ask torch), and the weights it was made from. On a GPU, parity needs the float32 weights for a
    moment: 13 GB at full size.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from eval.config.schema import ConfigError
from eval.records.observations import require_cameras
from eval.render.console import print_info
from eval.specs.pi05_build import choose_device, choose_dtype, eager_policy, load, optimise
from optim.base import Backend
from optim.bench.config import BenchConfig, BenchRun, Row, Setting
from optim.bench.reshape import reshape
from optim.bench.roofline import Work, find_ceiling, floor_ms, work
from optim.commands import user_errors
from optim.core.actions import Actions, infer_once, infer_together
from optim.core.parity import compare, worst
from policies.base import Request
from policies.pi05.checkpoint import Checkpoint
from policies.pi05.dims import STAGES
from policies.pi05.policy import Pi05Policy

SHORT_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

Backends = Mapping[str, Backend]


@dataclass(frozen=True)
class Candidate:
    """A policy that is ready to be timed, and what is known of it before."""

    row: Row
    policy: Pi05Policy
    batches: list[list[Request]]
    parity: dict[str, Any]
    peak_bytes: int | None
    build_s: float
    inputs: list[dict[str, int]]
    calls_before: dict[str, tuple[int, int]]


def bench_setting(
    setting: Setting,
    backends: Mapping[tuple[str, ...], Backends],
    requests: Sequence[Request],
    options: BenchConfig,
) -> dict[str, Any]:
    """Build the policies of one setting, compare them with eager float32, time them, and make the record.

    Args:
        backends: of each row, by its overrides.

    Raises:
        CommandError: a policy's weights are missing, its backend does not engage or its output is not finite.
    """
    first = setting.rows[0].config
    free(choose_device(first.pi05_options().device))
    steps = "as saved" if first.denoise.steps is None else first.denoise.steps
    print_info(f"denoise steps {steps}, {first.pi05_options().form} form: running eager float32, for parity")
    reference = _reference(first, requests)
    candidates = _build(setting.rows, backends, requests, reference)
    print_info(f"timing in {options.warmup} + {options.rounds} rounds")
    samples = time_policies(
        [(candidate.policy, candidate.batches) for candidate in candidates], options.rounds, options.warmup
    )
    expected = len(requests) + options.warmup + options.rounds
    return {
        "overrides": list(setting.overrides),
        "batch": first.bench.batch,
        "policies": [
            _row_record(candidate, own, expected) for candidate, own in zip(candidates, samples, strict=True)
        ],
    }


def refuse_batches(batch: int, backends: Backends) -> None:
    """Raise ConfigError for a batch that a stage's backend does not serve."""
    alone = [name for name, backend in backends.items() if batch > 1 and not backend.serves_batches]
    if alone:
        who = ", ".join(f"optim.{name}={backends[name]!r}" for name in alone)
        groups = ", ".join(f"optim/{name}" for name in alone)
        raise ConfigError(f"bench.batch must be 1 with {who}, got {batch}; choose another {groups}")


def batches_of(requests: Sequence[Request], lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Choose for each request those that are inferred with it: itself and the next ones of its length.

    Args:
        lengths: of each request's prompt.

    Returns:
        Numbers of requests; a batch that is larger than the number of a length has some of them again.
    """
    batches = []
    for i, length in enumerate(lengths):
        order = [*range(i, len(requests)), *range(i)]
        alike = [j for j in order if lengths[j] == length]
        batches.append([alike[k % len(alike)] for k in range(batch)])
    return batches


def time_policies(
    policies: Sequence[tuple[Pi05Policy, Sequence[Sequence[Request]]]], rounds: int, warmup: int
) -> list[list[dict[str, Any]]]:
    """Time policies in turns; a list of samples for each, in the order of the policies.

    In round r every policy gets its batch r; who begins changes from round to round.
    """
    samples: list[list[dict[str, Any]]] = [[] for _ in policies]
    for i in range(-warmup, rounds):
        for position in range(len(policies)):
            which = (i + position) % len(policies)
            policy, batches = policies[which]
            at = i % len(batches)
            begin = time.perf_counter()
            chunk, *_ = policy.infer(batches[at])
            infer_ms = (time.perf_counter() - begin) * 1e3
            if i >= 0:
                sample = {"round": i, "position": position, "observation": at, "infer_ms": infer_ms}
                samples[which].append(sample | {"stage_ms": dict(chunk.stage_ms)})
    return samples


def parity_of(actions: Sequence[Actions], reference: Sequence[Actions]) -> dict[str, Any]:
    """Compare actions with the reference's; keep the worst numbers over all observations.

    Raises:
        ParityError: a number is not finite.
    """
    pairs = list(zip(actions, reference, strict=True))
    normalised = worst(compare(one.normalised_HA, other.normalised_HA) for one, other in pairs)
    return {
        "reference": "eager float32",
        "observations": len(pairs),
        **normalised.to_dict(),
        "max_abs_action": max(one.max_abs_action(other) for one, other in pairs),
    }


def _reference(config: BenchRun, requests: Sequence[Request]) -> list[Actions]:
    """Run the first policy's configuration in eager float32; its weights are freed."""
    with user_errors():
        policy = _shaped(config, eager_float32(config))
        require_cameras(requests, policy.cameras)
    reference = [infer_once(policy, request)[0] for request in requests]
    del policy
    free(choose_device(config.pi05_options().device))
    return reference


def eager_float32(config: BenchRun) -> Pi05Policy:
    """Build the policy in eager float32, whatever precision is configured."""
    exact = replace(config, policy=replace(config.pi05_options(), precision="float32"))
    return eager_policy(exact, load(exact))


def _shaped(config: BenchRun, policy: Pi05Policy) -> Pi05Policy:
    return reshape(policy, config.bench.views, config.bench.prompt_tokens)


def _build(
    rows: Sequence[Row],
    backends: Mapping[tuple[str, ...], Backends],
    requests: Sequence[Request],
    reference: Sequence[Actions],
) -> list[Candidate]:
    checkpoints: dict[tuple[object, ...], tuple[Checkpoint, int]] = {}
    candidates = []
    for row in rows:
        config = row.config
        device = choose_device(config.pi05_options().device)
        key = (
            device,
            choose_dtype(config.pi05_options().precision, device),
            repr(config.checkpoint),
            config.denoise.steps,
        )
        if key not in checkpoints:
            _return_cache(device)
            before = _used(device)
            loaded = load(config)
            _return_cache(device)
            checkpoints[key] = (loaded, _used(device) - before)
        checkpoint, weight_bytes = checkpoints[key]
        _return_cache(device)
        used_before = _used(device)
        print_info(f"building {row.label}")
        begin = time.perf_counter()
        with user_errors(f"policy {row.label}: "):
            eager = _shaped(config, eager_policy(config, checkpoint))
            size = config.bench.batch
            policy = optimise(config, eager, checkpoint, backends[row.overrides], lambda _: requests, (size,))
            build_s = time.perf_counter() - begin
            before_calls = _calls(policy)
            inputs = [_sizes(policy, request) for request in requests]
            chosen = batches_of(requests, [sizes["prompt_tokens"] for sizes in inputs], size)
            batches = [[requests[j] for j in numbers] for numbers in chosen]
            actions = [one for batch in batches for one in infer_together(policy, batch)[0]]
            parity = parity_of(actions, [reference[j] for numbers in chosen for j in numbers])
        peak = _used(device) - used_before + weight_bytes if device.type == "cuda" else None
        print_info(f"built {row.label} in {build_s:.1f} s")
        candidates.append(Candidate(row, policy, batches, parity, peak, build_s, inputs, before_calls))
    return candidates


def _row_record(candidate: Candidate, samples: Sequence[Mapping[str, Any]], expected: int) -> dict[str, Any]:
    row, policy = candidate.row, candidate.policy
    engagement: dict[str, Any] = {}
    for name, stage in policy.engagement().items():
        calls, misses = candidate.calls_before[name]
        engagement[name] = stage | {
            "calls": stage["calls"] - calls,
            "misses": stage["misses"] - misses,
            "expected": expected,
        }
    return {
        "label": row.label,
        "overrides": list(row.overrides),
        "config": row.composed,
        "facts": policy.provenance(),
        "inputs": candidate.inputs,
        "build_s": candidate.build_s,
        "peak_bytes": candidate.peak_bytes,
        "parity": candidate.parity,
        "engagement": engagement,
        "floor_ms": _floors(policy, candidate.inputs) if row.config.bench.batch == 1 else None,
        "samples": list(samples),
    }


def _floors(policy: Pi05Policy, inputs: Sequence[Mapping[str, int]]) -> dict[str, float] | None:
    """Compute the least milliseconds of each stage, the mean over the inputs, where a ceiling is known."""
    name = torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else None
    ceiling = find_ceiling(name)
    if ceiling is None:
        return None
    dtype = str(policy.dtype).removeprefix("torch.")
    floors = {}
    for stage in STAGES:
        precision = policy.stages[stage].details.get("precision", dtype)
        precision = SHORT_PRECISIONS.get(precision, precision)
        if precision not in ceiling.flops_per_s:
            continue
        each = [floor_ms(_work(policy, sizes)[stage], ceiling, precision) for sizes in inputs]
        floors[stage] = sum(each) / len(each)
    return floors


def _work(policy: Pi05Policy, sizes: Mapping[str, int]) -> dict[str, Work]:
    tokens = sizes["image_tokens"] + sizes["prompt_tokens"]
    return work(policy.dims, images=sizes["images"], prefix_tokens=tokens, steps=policy.denoise_steps)


def _sizes(policy: Pi05Policy, request: Request) -> dict[str, int]:
    inputs = policy.preprocess([request.observation], policy.form)
    images = inputs.images_BNCHW.shape[1]
    return {
        "images": images,
        "image_tokens": images * policy.dims.tokens_per_image,
        "prompt_tokens": inputs.tokens_BT.shape[1],
    }


def _calls(policy: Pi05Policy) -> dict[str, tuple[int, int]]:
    return {name: (stage.calls, stage.misses) for name, stage in policy.stages.items()}


def _used(device: torch.device) -> int:
    """Count the bytes of the GPU that are in use, by torch and by others; 0 without one."""
    if device.type != "cuda":
        return 0
    available, total = torch.cuda.mem_get_info(device)
    return total - available


def free(device: torch.device) -> None:
    """Let go of compiled code and of memory that nobody uses any more."""
    torch.compiler.reset()
    _return_cache(device)


def _return_cache(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
