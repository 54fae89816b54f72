"""Pieces of text: a SentencePiece model, or a tokenizer.json of Hugging Face's tokenizers; the same ids."""

from pathlib import Path
from typing import Protocol

import sentencepiece

from policies.pi05.dims import PALIGEMMA_VOCAB

BOS = "<bos>"  # its name in every tokenizer.json of Gemma
PADDING = 128  # rows of an embedding are at most filled up to a multiple of it
# openpi's file has as many pieces as PaliGemma's embedding has rows. Gemma's has them without <loc0000> to
# <loc1023> and <seg000> to <seg127>; Hugging Face's conversion of PaliGemma adds <image>
# (transformers models/paligemma/convert_paligemma_weights_to_hf.py).
GEMMA_PIECES = PALIGEMMA_VOCAB - 1024 - 128
HUGGING_FACE_PIECES = PALIGEMMA_VOCAB + 1


class Pieces(Protocol):
    """A vocabulary that spells every text; `bos_id` is the id that begins a prompt."""

    size: int  # number of pieces
    bos_id: int

    def encode(self, text: str) -> list[int]:
        """Spell the text alone: nothing is added, and the names of special pieces in it are plain text."""


class SentencePieces:
    """A SentencePiece model."""

    def __init__(self, content: bytes, path: Path) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint.tokenizer must be a SentencePiece model or a tokenizer.json, got {path}: "
                f"{error}; take PaliGemma's tokenizer.model"
            ) from error
        self.size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        if self.bos_id < 0:
            raise _no_bos(path)

    def encode(self, text: str) -> list[int]:
        return self._model.EncodeAsIds(text)


class HuggingFacePieces:
    """A tokenizer.json.

    Non-obvious behaviors:
        The file may ask for truncation, padding, and special pieces around a text or in it. None of that is
        done: SentencePiece knows none of it, and a prompt that is cut would lose the words that start the
        action.
    """

    def __init__(self, content: bytes, path: Path) -> None:
        import tokenizers  # most checkpoints need none

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except BaseException as error:
            if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":  # Rust's
                raise
            raise ValueError(
                f"checkpoint.tokenizer must be a SentencePiece model or a tokenizer.json, got {path}: "
                f"{error}; of a tokenizer's folder take tokenizer.model or tokenizer.json"
            ) from error
        if not getattr(self._tokenizer.model, "byte_fallback", False):
            raise ValueError(
                f"checkpoint.tokenizer must spell unknown characters in bytes, got {path} without "
                "byte_fallback; take PaliGemma's tokenizer.model or tokenizer.json"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # as text
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        bos_id = self._tokenizer.token_to_id(BOS)
        if bos_id is None:
            raise _no_bos(path)
        self.bos_id: int = bos_id

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def read_pieces(content: bytes, path: Path) -> Pieces:
    """Read a vocabulary; ValueError for another kind of file, or one without a beginning of sentence.

    The content tells the two kinds apart: files are renamed, and a model never begins with a brace.
    """
    if content.lstrip().startswith(b"{"):
        return HuggingFacePieces(content, path)
    return SentencePieces(content, path)


def check_size(size: int, rows: int, path: Path) -> None:
    """Raise ValueError for a vocabulary of `size` pieces that cannot belong to an embedding of `rows` rows.

    It has as many pieces as the embedding has rows, or up to `PADDING` - 1 fewer; PaliGemma's embedding also
    goes with Gemma's pieces and Hugging Face's.
    """
    others = (GEMMA_PIECES, HUGGING_FACE_PIECES) if rows == PALIGEMMA_VOCAB else ()
    if rows - PADDING < size <= rows or size in others:
        return
    counts = " or ".join(str(count) for count in (rows, *others))
    raise ValueError(
        f"checkpoint.tokenizer must have {counts} pieces for the {rows} rows of the embedding, got {size} in "
        f"{path}; it belongs to another network, set checkpoint.tokenizer to the one of these weights"
    )


def _no_bos(path: Path) -> ValueError:
    return ValueError(
        f"checkpoint.tokenizer must have a <bos> piece, got {path} without one; "
        "take PaliGemma's tokenizer.model or tokenizer.json"
    )
