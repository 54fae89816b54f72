"""Compare the stages with outputs recorded from openpi: `python -m policies.pi05.parity DIR [--rtol 1e-5]`.

DIR holds config.json (sizes), model.safetensors (openpi's keys) and parity.safetensors (`in.*` and `out.*`).
Exits 1 if any output, in the full or the lean form, differs by more than rtol times the output's largest
magnitude.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from policies.pi05.checkpoint_files import read_config
from policies.pi05.checkpoint_layouts import load_stages
from policies.pi05.denoise import Denoise
from policies.pi05.dims import Pi05Dims
from policies.pi05.policy import run_stages
from policies.pi05.prefix import Prefix
from policies.pi05.preprocess import FORMS, assemble
from policies.pi05.timing import StageTimer


@dataclass(frozen=True)
class Comparison:
    """One output in one form; `max_rel` is the largest difference over the reference's largest magnitude."""

    form: str
    output: str
    max_abs: float
    max_rel: float


@torch.no_grad()
def compare(folder: Path, device: torch.device | str = "cpu") -> list[Comparison]:
    """Return one comparison per form and recorded output.

    Raises:
        FileNotFoundError, ValueError: the folder's weights do not load.
        KeyError: parity.safetensors lacks an input.
    """
    device = torch.device(device)
    dims = Pi05Dims.from_native(read_config(folder), str(folder / "config.json"))
    recorded = {name: tensor.to(device) for name, tensor in load_file(folder / "parity.safetensors").items()}
    steps_recorded = [
        int(name.removeprefix("out.actions_")) for name in recorded if name.startswith("out.actions_")
    ]
    if not steps_recorded or len(recorded["in.tokens"]) != 1:
        raise ValueError(
            f"{folder}/parity.safetensors must record one observation and at least one out.actions_<steps>"
        )
    stages = load_stages(folder / "model.safetensors", "", dims, 1, device, torch.float32)
    prefix, denoise = stages["prefix"], stages["denoise"]
    assert isinstance(prefix, Prefix)
    assert isinstance(denoise, Denoise)

    images = torch.stack([recorded[f"in.image.{camera}"] for camera in dims.live_cameras], dim=1)
    rows = zip(recorded["in.tokens"], recorded["in.token_mask"], strict=True)
    prompts = [tokens[mask].tolist() for tokens, mask in rows]
    noise = recorded["in.noise"]

    results = []
    for form in FORMS:
        inputs = assemble(images, prompts, dims, form)
        ours: dict[str, Tensor] = {}
        for steps in steps_recorded:
            run = {**stages, "denoise": denoise.with_steps(steps)}
            ours[f"out.actions_{steps}"], args = run_stages(run, inputs, noise, StageTimer(device))
        image_tokens, _, tokens, _ = args["prefix"]
        _, keys, values, mask = args["denoise"]
        assert image_tokens is not None
        assert tokens is not None
        assert keys is not None
        assert values is not None
        ours["out.prefix_embs"] = prefix.embed(image_tokens, tokens)
        ours["out.prefix_key_last"], ours["out.prefix_value_last"] = keys[-1], values[-1]
        if mask is not None:
            ours["out.prefix_pad_mask"] = mask
        rope, bias = denoise.suffix_geometry(noise, keys, mask)
        start = denoise.modulations(torch.ones(1, device=device))[:, 0, None]
        ours["out.velocity_t1"] = denoise.velocity(noise, start, keys, values, rope, bias)
        valid = recorded["out.prefix_pad_mask"]
        results += [
            _comparison(form, name, tensor, _reference(name, recorded, valid if mask is None else None))
            for name, tensor in ours.items()
        ]
    return results


def _reference(name: str, recorded: dict[str, Tensor], valid_BP: Tensor | None) -> Tensor:
    """Return the recorded output; of prefix outputs only the valid rows where `valid_BP` is given."""
    reference = recorded[name]
    if valid_BP is None or not name.startswith("out.prefix_"):
        return reference
    return reference[..., valid_BP[0], :]


def _comparison(form: str, name: str, ours: Tensor, reference: Tensor) -> Comparison:
    if ours.shape != reference.shape:
        raise ValueError(f"{form} {name} must have shape {list(reference.shape)}, got {list(ours.shape)}")
    difference = (ours.double() - reference.double()).abs().max().item()
    return Comparison(form, name, difference, difference / reference.double().abs().max().item())


def _lines(results: list[Comparison], rtol: float) -> Iterator[str]:
    yield f"{'form':<6}{'output':<26}{'max abs':>10}{'max rel':>10}  verdict"
    for r in results:
        verdict = "pass" if r.max_rel <= rtol else "FAIL"
        yield f"{r.form:<6}{r.output:<26}{r.max_abs:>10.2e}{r.max_rel:>10.2e}  {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--rtol", type=float, default=1e-5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    results = compare(options.folder, options.device)
    sys.stdout.write("\n".join(_lines(results, options.rtol)) + "\n")
    return 0 if all(result.max_rel <= options.rtol for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
