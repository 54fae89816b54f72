"""Both prompt formats."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from policies.base import Request
from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.prompt import PromptTokenizer, clean_instruction, discretise_state, state_prompt
from policies.pi05.random_weights import TOKENIZER_PATH
from policies.reference.tokenizer import libero_instructions, train


@pytest.fixture
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer(TOKENIZER_PATH)


@pytest.fixture
def pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER_PATH))


def test_cleaning_keeps_case_and_replaces_underscores_and_newlines() -> None:
    assert clean_instruction("  Put_the bowl\non the Plate ") == "Put the bowl on the Plate"


def test_prompt_without_state_is_bos_text_newline(
    tokenizer: PromptTokenizer, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    ids = tokenizer.encode("open_the top drawer ", None, 200)
    assert ids == [2, *pieces.encode("open the top drawer"), *pieces.encode("\n")]


def test_prompt_with_state_carries_bins_and_ends_with_action(
    tokenizer: PromptTokenizer, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    state = np.array([-1.0, 0.0, 0.999, 1.0])
    text = "Task: open the top drawer, State: 0 128 255 255;\nAction: "
    assert state_prompt("open_the top drawer", state) == text
    assert tokenizer.encode("open_the top drawer", state, 200) == [2, *pieces.encode(text)]


def test_bins_are_left_closed_and_outliers_are_not_clipped_to_zero() -> None:
    edges = np.array([-1.5, -1.0, -1.0 + 1 / 128, -1e-9, 0.0, 5.0])
    assert discretise_state(edges) == [-1, 0, 1, 127, 128, 255]


def test_too_long_a_prompt_is_an_error_not_cut(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(ValueError, match="at most max_token_len=5 tokens, got"):
        tokenizer.encode("put the black bowl on the plate", None, 5)


def test_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"checkpoint\.tokenizer must be a SentencePiece model"):
        PromptTokenizer(path)


def test_state_reaches_the_prompt_normalised_and_padded_with_zeros(
    config: Callable[..., CheckpointConfig],
    request_of: Callable[..., Request],
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    preprocess = load_checkpoint(config(state_in_prompt=True, state_prompt_dims=32)).preprocess()
    observation = replace(request_of(0).observation, state=np.full(8, 0.5), instruction="close it")
    tokens = preprocess([observation], "lean").tokens_BT[0].tolist()
    numbers = " ".join(["191"] * 8 + ["128"] * 24)  # eps puts 0.5 just below the edge of bin 192
    assert tokens == [2, *pieces.encode(f"Task: close it, State: {numbers};\nAction: ")]


def test_reference_tokenizer_is_what_training_gives_again(tmp_path: Path) -> None:
    train(tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == TOKENIZER_PATH.read_bytes()
    assert TOKENIZER_PATH.stat().st_size < 50_000


def test_reference_tokenizer_spells_every_instruction_with_paligemma_specials(
    tokenizer: PromptTokenizer, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    assert (pieces.pad_id(), pieces.eos_id(), pieces.bos_id(), pieces.unk_id()) == (0, 1, 2, 3)
    instructions = libero_instructions()
    assert "turn on the stove and put the moka pot on it" in instructions  # of libero_10, scene name dropped
    for instruction in instructions:
        ids = tokenizer.encode(instruction, np.zeros(32), 200)
        assert pieces.unk_id() not in ids
        assert pieces.decode(ids) == state_prompt(instruction, np.zeros(32))
