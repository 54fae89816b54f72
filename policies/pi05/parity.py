"""Compare a checkpoint with outputs recorded from who wrote it: `python -m policies.pi05.parity DIR`.

DIR has one of two forms. openpi's holds config.json (sizes, as in the native layout; not openpi's or
lerobot's), model.safetensors (openpi's keys) and parity.safetensors (one observation, `in.*`, and what
openpi made of it, `out.*`); each output may differ by --rtol (1e-5) times its largest magnitude. lerobot's
is a folder of lerobot with io.safetensors, prompts.json and, for a small network, sizes.json;
`policies.pi05.lerobot_parity` has its tensors and bounds. Prints one row per output and form; the lean form
has no pad mask. Exits 1 if any output differs by more than its bound, and 2, with one line on stderr, if
the folder cannot be compared.

B batch, P prefix tokens.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from policies.pi05.checkpoint_files import find_weights, read_config
from policies.pi05.checkpoint_layouts import load_stages
from policies.pi05.comparison import Comparison, check_tensors, compare_output, read_recording, table
from policies.pi05.denoise import Denoise
from policies.pi05.devices import find_device
from policies.pi05.dims import FORMS, Pi05Dims
from policies.pi05.lerobot_parity import compare_lerobot, is_lerobot
from policies.pi05.policy import run_stages
from policies.pi05.prefix import Prefix
from policies.pi05.preprocess import assemble, prepare_images
from policies.pi05.timing import StageTimer
from policies.text import visible

ACTIONS = re.compile(r"out\.actions_([1-9][0-9]*)")  # the number is that of Euler steps


@torch.no_grad()
def compare(folder: Path, device: torch.device | str = "cpu") -> list[Comparison]:
    """Run the stages on the recorded inputs and compare each recorded output, in both forms.

    Raises:
        FileNotFoundError: the folder, or one of its three files, is not there.
        ValueError: a file is unreadable, the weights are not this network's, or the recording lacks a tensor,
            has one of another shape, an output that is not computed here, or an output of zeros alone.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(folder)!r}; give one with config.json, model.safetensors and "
            "parity.safetensors, or a lerobot folder with io.safetensors"
        )
    device = torch.device(device)
    if is_lerobot(folder):
        return compare_lerobot(folder, device)
    dims = Pi05Dims.from_native(read_config(folder), str(folder / "config.json"))
    recorded = {
        name: tensor.to(device) for name, tensor in _read(folder / "parity.safetensors", dims).items()
    }
    steps_recorded = [int(match[1]) for name in recorded if (match := ACTIONS.fullmatch(name))]
    stages = load_stages(find_weights(folder), "", dims, 1, device, torch.float32)
    prefix, denoise = stages["prefix"], stages["denoise"]
    assert isinstance(prefix, Prefix)
    assert isinstance(denoise, Denoise)

    images = torch.stack([recorded[f"in.image.{camera}"] for camera in dims.live_cameras], dim=1)
    rows = zip(recorded["in.tokens"], recorded["in.token_mask"], strict=True)
    prompts = [tokens[mask].tolist() for tokens, mask in rows]
    noise = recorded["in.noise"]

    results = []
    for form in FORMS:
        inputs = assemble(prepare_images(images, dims.image_size), prompts, dims, form)
        outputs: dict[str, Tensor] = {}
        for steps in steps_recorded:
            run = {**stages, "denoise": denoise.with_steps(steps)}
            outputs[f"out.actions_{steps}"], args = run_stages(run, inputs, lambda: noise, StageTimer(device))
        image_tokens, _, tokens, _ = args["prefix"]
        _, keys, values, mask = args["denoise"]
        assert image_tokens is not None
        assert tokens is not None
        assert keys is not None
        assert values is not None
        outputs["out.prefix_embs"] = prefix.embed(image_tokens, tokens)
        outputs["out.prefix_key_last"], outputs["out.prefix_value_last"] = keys[-1], values[-1]
        if mask is not None:
            outputs["out.prefix_pad_mask"] = mask
        rope, bias = denoise.suffix_geometry(noise, keys, mask)
        start = denoise.modulations(torch.ones(1, device=device))[:, 0, None]
        outputs["out.velocity_t1"] = denoise.velocity(noise, start, keys, values, rope, bias)
        valid = recorded["out.prefix_pad_mask"]
        results += [
            compare_output(form, name, tensor, _reference(name, recorded, valid if mask is None else None))
            for name, tensor in outputs.items()
        ]
    return results


def _read(path: Path, dims: Pi05Dims) -> dict[str, Tensor]:
    """Read the recording; it must hold all that `compare` reads and no other output."""
    recorded = read_recording(path, "openpi")
    expected = _expected(dims)
    actions = {name for name in recorded if ACTIONS.fullmatch(name)}
    missing = sorted(expected.keys() - recorded.keys()) + ([] if actions else ["out.actions_<steps>"])
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; record them too")
    known = {*expected, *actions}
    if unknown := sorted(name for name in recorded if name not in known and not name.startswith("in.")):
        raise ValueError(
            f"{path} has {', '.join(unknown)}, which parity does not compute; "
            f"it computes {', '.join(sorted(name for name in known if name.startswith('out.')))}"
        )
    expected |= dict.fromkeys(actions, expected["in.noise"])
    check_tensors(recorded, expected, path)
    sizes = {tuple(recorded[name].shape) for name in expected if name.startswith("in.image.")}
    if len(sizes) > 1:
        raise ValueError(f"in.image.* must have one size, got {sorted(sizes)} in {path}")
    prompt = recorded["in.tokens"][recorded["in.token_mask"]]
    if not len(prompt) or prompt.min() < 0 or prompt.max() >= dims.vocab_size:
        raise ValueError(
            f"in.tokens must have at least one token under in.token_mask, all 0 to {dims.vocab_size - 1}, "
            f"got {prompt.tolist()} in {path}"
        )
    return recorded


def _expected(dims: Pi05Dims) -> dict[str, tuple[torch.dtype, tuple[int | None, ...]]]:
    """Dtype and shape (None: any size) of every tensor that must be recorded, except the actions."""
    tokens = dims.max_token_len
    prefix = len(dims.cameras) * dims.tokens_per_image + tokens
    actions = (1, dims.action_horizon, dims.action_dim)
    cache = (1, dims.prefix.num_kv_heads, prefix, dims.prefix.head_dim)
    return {
        **{f"in.image.{camera}": (torch.uint8, (1, None, None, 3)) for camera in dims.live_cameras},
        "in.tokens": (torch.int64, (1, tokens)),
        "in.token_mask": (torch.bool, (1, tokens)),
        "in.noise": (torch.float32, actions),
        "out.prefix_embs": (torch.float32, (1, prefix, dims.prefix.width)),
        "out.prefix_pad_mask": (torch.bool, (1, prefix)),
        "out.prefix_key_last": (torch.float32, cache),
        "out.prefix_value_last": (torch.float32, cache),
        "out.velocity_t1": (torch.float32, actions),
    }


def _reference(name: str, recorded: dict[str, Tensor], valid_BP: Tensor | None) -> Tensor:
    """The recorded output; of prefix outputs only the valid rows where `valid_BP` is given."""
    reference = recorded[name]
    if valid_BP is None or not name.startswith("out.prefix_"):
        return reference
    return reference[..., valid_BP[0], :]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--rtol", type=float, help="of openpi's form, 1e-5")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rtol = 1e-5 if options.rtol is None else options.rtol
    try:
        if options.rtol is not None and is_lerobot(options.folder):
            raise ValueError(f"--rtol={options.rtol} is for openpi's form; lerobot's has bounds of its own")
        results = compare(options.folder, find_device(options.device, "--device"))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {visible(' '.join(str(error).split()))}\n")
        return 2
    sys.stdout.write(visible("\n".join(table(results, rtol)), lines=True) + "\n")
    return 0 if all(result.passes(rtol) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
