"""From a target's files to a folder that the harness loads, and the tokenizer beside it."""

import importlib.util
from pathlib import Path

from eval.published.fetch import Listing, Refused, list_wanted
from eval.published.sources import Source, Unavailable, open_source
from eval.published.targets import OTHER_SIZES, TOKENIZER_ABOUT, TOKENIZER_NAMES, TOKENIZER_URL, Target
from eval.render.console import print_info
from policies.pi05.checkpoint_files import read_config
from policies.pi05.lerobot_settings import read_lerobot_folder
from policies.text import quoted

CONVERTED = "checkpoint"  # folder of converted weights
TOKENIZER_RECORD = "tokenizer_source.json"


def list_tokenizer(
    folder: Path, weights: Listing, given: Path | None, url: str = TOKENIZER_URL
) -> tuple[Source, Listing] | None:
    """List the tokenizer's file where neither the user nor the weights bring one, else None.

    Raises Refused where it cannot be had.
    """
    if given is not None or weights.has(TOKENIZER_NAMES):
        return None
    source = open_source(url)
    try:
        everything = ("*",)
        return source, list_wanted(
            source, folder / "tokenizer", folder / TOKENIZER_RECORD, everything, everything
        )
    except Unavailable as error:
        raise Refused(
            f"PaliGemma's tokenizer ({TOKENIZER_ABOUT}) is needed and {url} did not give it: {error}; give "
            "--tokenizer FILE (tokenizer.model of google/paligemma-3b-pt-224, gated on the hub)"
        ) from error


def convert_bytes(target: Target, folder: Path, listing: Listing) -> int:
    """Estimate what the conversion will write: as much as it reads, or nothing.

    Raises Refused where the package that it needs is missing.
    """
    if is_converted(target, folder):
        return 0
    if importlib.util.find_spec("tensorstore") is None:
        raise Refused(f"converting {target.name} needs tensorstore: pip install '.[published]'")
    return sum(file.size for file in listing.files if file.path.startswith("params/"))


def convert(target: Target, folder: Path, listing: Listing) -> None:
    """Convert fetched weights to a folder that the harness loads, unless that is done or not needed.

    Raises OSError or ValueError as `convert_checkpoint` does.
    """
    if is_converted(target, folder):
        return
    from policies.pi05.convert import convert_checkpoint  # with torch, which takes a second

    print_info(f"converting {listing.folder} to {folder / CONVERTED}")
    done = convert_checkpoint(listing.folder, folder / CONVERTED)
    print_info(f"converted {done.num_arrays} arrays to {done.num_tensors} tensors: {done.weights_sha256}")


def fill_in(target: Target, folder: Path, tokenizer: Path | None) -> list[str]:
    """List overrides for what a folder that is ready to load does not tell, of those in `target.filled`.

    Raises ValueError or FileNotFoundError as `read_config` and `read_lerobot_folder` do.
    """
    config = read_config(folder)
    if target.is_jax:
        if "paligemma_variant" in config:  # openpi's own sizes
            return []
        return [
            OTHER_SIZES,
            *(
                quoted("checkpoint.norm_stats", str(path))
                for path in sorted(folder.glob("assets/**/norm_stats.json"))
            ),
        ]
    name = None if tokenizer is None else str(tokenizer)
    if read_lerobot_folder(folder, config, name).version_says_8:
        return []
    return list(target.filled)


def is_converted(target: Target, folder: Path) -> bool:
    """Whether nothing is left to convert."""
    return not target.is_jax or (folder / CONVERTED).exists()  # it appears complete
