"""From a target's files to a folder that the harness loads, and the tokenizer beside it."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from eval.config.multiply import key_of
from eval.published.fetch import Listing, Refused, list_wanted
from eval.published.sources import Source, Unavailable, open_source
from eval.published.targets import TOKENIZER_ABOUT, TOKENIZER_NAMES, TOKENIZER_URL, Target
from eval.render.console import print_info
from policies.pi05.checkpoint_files import read_config
from policies.pi05.lerobot_settings import read_lerobot_folder

CONVERTED = "checkpoint"  # folder of converted weights
STATE_PROMPT_DIMS = "checkpoint.state_prompt_dims"
TOKENIZER_RECORD = "tokenizer_source.json"


def list_tokenizer(
    folder: Path, weights: Listing, given: Path | None, url: str = TOKENIZER_URL
) -> tuple[Source, Listing] | None:
    """List the tokenizer's file where neither the user nor the weights bring one, else None.

    Raises Refused where it cannot be had, or the given file does not exist.
    """
    if given is not None:
        if not given.is_file():
            raise Refused(f"--tokenizer: no file {str(given)!r} (looked at {given.resolve()})")
        return None
    if weights.has(TOKENIZER_NAMES):
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
    if not _is_left_to_convert(target, folder):
        return 0
    if importlib.util.find_spec("tensorstore") is None:
        raise Refused(f"converting {target.name} needs tensorstore: pip install '.[published]'")
    return sum(file.size for file in listing.files if file.path.startswith("params/"))


def convert(target: Target, folder: Path, listing: Listing) -> None:
    """Convert fetched weights to a folder that the harness loads, unless that is done or not needed.

    Raises OSError or ValueError as `convert_checkpoint` does.
    """
    if not _is_left_to_convert(target, folder):
        return
    from policies.pi05.convert import convert_checkpoint  # with torch, which takes a second

    print_info(f"converting {listing.folder} to {folder / CONVERTED}")
    done = convert_checkpoint(listing.folder, folder / CONVERTED)
    print_info(f"converted {done.num_arrays} arrays to {done.num_tensors} tensors: {done.weights_sha256}")


def fill_in(target: Target, folder: Path, overrides: Sequence[str], tokenizer: Path | None) -> list[str]:
    """List overrides for what a fetched folder does not tell, unless the user chose.

    Raises ValueError or FileNotFoundError as `read_lerobot_folder` does.
    """
    dims = target.state_prompt_dims
    if dims is None or STATE_PROMPT_DIMS in {key_of(text) for text in overrides}:
        return []
    name = None if tokenizer is None else str(tokenizer)
    if read_lerobot_folder(folder, read_config(folder), name).version_says_8:
        return []
    return [f"{STATE_PROMPT_DIMS}={dims}"]


def _is_left_to_convert(target: Target, folder: Path) -> bool:
    return target.is_jax and not (folder / CONVERTED).exists()  # it appears complete
