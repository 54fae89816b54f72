"""The prompt: an instruction, with or without the robot's state in words, as ids of pieces."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policies.files import read_followed
from policies.pi05.pieces import read_pieces

MOST_BYTES = 256 * 2**20  # of a tokenizer's file; PaliGemma's have 4 and 17 MB
STATE_BINS = np.linspace(-1.0, 1.0, 257)[:-1]  # lower edges of 256 bins (openpi models/tokenizer.py)


def clean_instruction(instruction: str) -> str:
    """Strip, and turn underscores and newlines into spaces; case stays."""
    return instruction.strip().replace("_", " ").replace("\n", " ")


def discretise_state(state: NDArray[np.float64]) -> list[int]:
    """Bin each normalised number, 0 to 255; below -1 is bin -1, above 1 is bin 255."""
    return (np.digitize(state, STATE_BINS) - 1).tolist()


def state_prompt(instruction: str, state: NDArray[np.float64]) -> str:
    """Word pi0.5's default prompt, which carries the normalised state."""
    numbers = " ".join(str(number) for number in discretise_state(state))
    return f"Task: {clean_instruction(instruction)}, State: {numbers};\nAction: "


class PromptTokenizer:
    """The pieces of a tokenizer's file, and the two prompt formats.

    Raises ValueError for a file that `read_pieces` refuses.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = read_followed(self.path, MOST_BYTES)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._pieces = read_pieces(content, self.path)
        self.vocab_size = self._pieces.size

    def encode(self, instruction: str, state: NDArray[np.float64] | None, max_tokens: int) -> list[int]:
        """Encode one prompt, unpadded, with the normalised state where it is not None.

        Raises ValueError where it is longer than `max_tokens`; openpi would cut it, and with it the words
        that start the action.
        """
        if state is None:
            ids = [
                self._pieces.bos_id,
                *self._pieces.encode(clean_instruction(instruction)),
                *self._pieces.encode("\n"),
            ]
        else:
            ids = [self._pieces.bos_id, *self._pieces.encode(state_prompt(instruction, state))]
        if len(ids) > max_tokens:
            raise ValueError(
                f"prompt must have at most max_token_len={max_tokens} tokens, got {len(ids)} for "
                f"{instruction!r}; shorten the instruction or use a checkpoint with a larger max_token_len"
            )
        return ids
