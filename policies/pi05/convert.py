"""Convert openpi's JAX checkpoint: `python -m policies.pi05.convert SRC DST [--horizon 10]`.

SRC is a step's folder on this machine (params/ and assets/), or its params/. DST is a new folder in openpi's
PyTorch layout: model.safetensors (openpi's keys, each array in its stored precision), config.json, and
assets/<asset_id>/norm_stats.json. Where a network has other sizes than openpi's variants, config.json is that
of the layout `native`, since openpi's only names variants. DST appears complete or not at all. Needs
tensorstore (the extra `jax`), not JAX. Exits 1, with an error on stderr, if SRC is not openpi's pi0.5 or DST
cannot be written; 130 after ctrl-C.
"""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from policies.files import expand_home, new_folder
from policies.pi05.checkpoint_layouts import check_finite
from policies.pi05.dims import GEMMA_VARIANTS, MAX_HORIZON, Pi05Dims
from policies.pi05.jax_checkpoint import JaxArray, find_params, open_arrays, source_hashes
from policies.pi05.jax_tensors import ROWS, Slice, derive_dims, read_sizes
from policies.pi05.safetensors_stream import write_safetensors
from policies.pi05.weight_files import WEIGHTS
from policies.text import shell_command, shell_override, visible

HORIZON = 10  # of pi05_libero (openpi training/config.py); no file of a JAX checkpoint says it
SPARE_BYTES = 2**28  # that the disk must have beside the tensors


@dataclass(frozen=True)
class Conversion:
    """What was written, and from what."""

    params: Path  # the store that was read
    folder: Path
    layout: str  # openpi, or native for sizes that are none of openpi's variants
    dims: Pi05Dims
    num_arrays: int
    num_tensors: int
    num_bytes: int
    weights_sha256: str
    source_sha256: Mapping[str, str]  # of the store's own files, by name
    norm_stats: tuple[Path, ...]  # copied ones, in `folder`

    def evaluation(self) -> str:
        """Word the command that evaluates the result."""
        choice = {"openpi": "pi05_libero", "native": "native"}[self.layout]
        words = [f"checkpoint={choice}", shell_override("checkpoint.path", str(self.folder))]
        if len(self.norm_stats) != 1:
            words.append("checkpoint.norm_stats=FILE")
        elif self.layout == "native":
            words.append(shell_override("checkpoint.norm_stats", str(self.norm_stats[0])))
        if self.dims.action_horizon != HORIZON:
            words.append(f"checkpoint.horizon={self.dims.action_horizon}")
        return shell_command("eval", *words, "checkpoint.tokenizer=FILE")


def convert_checkpoint(
    source: Path, destination: Path, horizon: int = HORIZON, console: Console | None = None
) -> Conversion:
    """Write the checkpoint of `source` to a new folder; one stacked array at a time is in memory.

    Args:
        source: a step's folder with params/, or params/ itself.
        horizon: actions per chunk, which the source does not say.
        console: for the progress bar, which shows on a terminal only; stderr by default.

    Raises:
        ModuleNotFoundError: tensorstore is not installed.
        OSError: `source` is not there, `destination` is, or the disk has no room.
        ValueError: the arrays are not those of openpi's pi0.5, or one has a number that is not finite.
    """
    if not 1 <= horizon <= MAX_HORIZON:
        raise ValueError(f"--horizon must be 1 to {MAX_HORIZON}, got {horizon}")
    params = find_params(expand_home(source))
    destination = expand_home(destination).absolute()
    source_sha256 = source_hashes(params)
    arrays = open_arrays(params)
    sizes = read_sizes({path: array.shape for path, array in arrays.items()}, str(params))
    dims = derive_dims(sizes, horizon, str(params))
    # float32 before bfloat16, as the file wants it; else as the store has them
    paths = sorted(arrays, key=lambda path: -arrays[path].dtype.itemsize)
    slices = {path: list(ROWS[path].slices(sizes)) for path in paths}
    layout = {part.key: (arrays[path].dtype, part.shape) for path in paths for part in slices[path]}
    num_bytes = sum(array.num_bytes for array in arrays.values())
    config = config_json(dims, {array.dtype for array in arrays.values()})
    with new_folder(destination, durable=True) as temporary:
        _check_room(destination.parent, num_bytes)
        stats = _copy_norm_stats(params.parent, temporary)
        (temporary / "config.json").write_text(json.dumps(config, indent=1))
        with _progress(console or Console(stderr=True)) as progress:
            task = progress.add_task("starting", total=num_bytes)

            def show(path: str, num_bytes: int) -> None:
                progress.update(task, description=path, advance=num_bytes)

            tensors = _tensors(arrays, slices, params, show)
            sha256 = write_safetensors(temporary / WEIGHTS, layout, tensors)
    return Conversion(
        params=params,
        folder=destination,
        layout="openpi" if "paligemma_variant" in config else "native",
        dims=dims,
        num_arrays=len(arrays),
        num_tensors=len(layout),
        num_bytes=num_bytes,
        weights_sha256=sha256,
        source_sha256=source_sha256,
        norm_stats=tuple(destination / path.relative_to(temporary) for path in stats),
    )


def config_json(dims: Pi05Dims, dtypes: set[torch.dtype]) -> dict[str, Any]:
    """Write sizes as openpi's converter does, or in the native form where openpi has no name for them."""
    variants = {gemma: name for name, gemma in GEMMA_VARIANTS.items()}
    config = {
        "action_dim": dims.action_dim,
        "action_horizon": dims.action_horizon,
        "paligemma_variant": variants.get(dims.prefix),
        "action_expert_variant": variants.get(dims.expert),
        "precision": "bfloat16" if dtypes == {torch.bfloat16} else "float32",
    }
    if None not in config.values() and Pi05Dims.from_openpi(config, "config.json") == dims:
        return config
    return dims.to_native()


def _tensors(
    arrays: Mapping[str, JaxArray],
    slices: Mapping[str, list[Slice]],
    params: Path,
    show: Callable[[str, int], None],
) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors; each array is read once and let go before the next."""
    for path, parts in slices.items():
        show(path, 0)
        array = arrays[path].read()
        for part in parts:
            tensor = part.cut(array)
            check_finite(tensor, path + "".join(f"[{place}]" for place in part.index), params)
            yield part.key, tensor
            show(path, tensor.numel() * tensor.itemsize)
        del array, tensor


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        raise OSError(
            f"{folder} needs {num_bytes / 1e9:.1f} GB for the tensors, and has {free / 1e9:.1f} GB free; "
            "make room or name a DST on another disk"
        )


def _copy_norm_stats(step: Path, folder: Path) -> list[Path]:
    """Copy assets/**/norm_stats.json with their paths; where there is none, the loader asks for a file."""
    copies = []
    for path in sorted(step.glob("assets/**/norm_stats.json")):
        copy = folder / path.relative_to(step)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copies.append(copy)
    return copies


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def _lines(done: Conversion) -> Iterator[str]:
    size = f"{done.num_bytes / 1e9:.2f} GB" if done.num_bytes >= 1e7 else f"{done.num_bytes} bytes"
    yield f"{done.num_arrays} arrays to {done.num_tensors} tensors, {size}: {done.folder}"
    yield f"sha256 of {WEIGHTS}: {done.weights_sha256}"
    for name, sha256 in done.source_sha256.items():
        yield f"sha256 of {done.params / name}: {sha256}"
    if not done.norm_stats:
        yield f"no assets/**/norm_stats.json beside {done.params}: a run needs checkpoint.norm_stats=FILE"
    elif len(done.norm_stats) > 1:
        names = ", ".join(str(path) for path in done.norm_stats)
        yield f"several norm stats, checkpoint.norm_stats must name one: {names}"
    yield f"horizon {done.dims.action_horizon}: SRC does not say it, --horizon does"
    yield f"evaluate it, with PaliGemma's tokenizer: {done.evaluation()}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("destination", type=Path, metavar="DST")
    parser.add_argument(
        "--horizon", type=int, default=HORIZON, help="actions per chunk (default: %(default)s)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems: end as after ctrl-C
    try:
        done = convert_checkpoint(options.source, options.destination, options.horizon)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {visible(str(error), lines=True)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130
    sys.stdout.write(visible("\n".join(_lines(done)), lines=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
