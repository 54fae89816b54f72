"""Pieces: a tokenizer.json gives the ids of the SentencePiece model that it was made from."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from policies.pi05.checkpoint import load_checkpoint
from policies.pi05.checkpoint_config import CheckpointConfig
from policies.pi05.dims import RANDOM_SIZES
from policies.pi05.pieces import check_size, read_pieces
from policies.pi05.prompt import PromptTokenizer
from policies.pi05.random_weights import TOKENIZER_PATH
from policies.reference.tokenizer import libero_instructions
from tests.policies.pi05.folder import Folder

ODD = (
    "",
    " ",
    "   two  spaces   within ",
    "a\nb\n\nc\td\r",
    "Größe 42,5 µm; naïve café",
    "赤いボウルを皿に置いて",
    "🤖🦾 \u200d \ufeff \x00 \x7f",
    "e\u0301 is not \u00e9, \ufb01 is not fi, \uff21 is not A",
    "<bos> <s> </s> <eos> <pad> <unk> <0x41> <image> <loc0001> <seg001>",
    "▁the ▁▁ _under_",
    "Task: , State: 0 128 -1 255;\nAction: ",
)


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint's pieces as Hugging Face converts Gemma's."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    converted().save(str(path))
    return path


def converted() -> Tokenizer:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER_PATH))
    names = {"<s>": "<bos>", "</s>": "<eos>"}
    vocab = {names.get(name, name): i for i in range(512) for name in [pieces.id_to_piece(i)]}
    tokenizer = Tokenizer(
        models.BPE(vocab, list(merges(pieces)), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=200)
    return tokenizer


def merges(pieces: sentencepiece.SentencePieceProcessor) -> Iterator[tuple[str, str]]:
    """The pairs that make each learned piece, the best piece first: what SentencePiece's scores say."""
    learned = [
        i for i in range(512) if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
    ]
    names = {pieces.id_to_piece(i) for i in learned}
    for i in sorted(learned, key=pieces.get_score, reverse=True):
        name = pieces.id_to_piece(i)
        for cut in range(1, len(name)):
            if {name[:cut], name[cut:]} <= names:
                yield name[:cut], name[cut:]


def test_a_tokenizer_json_gives_sentencepieces_prompts(tokenizer_json: Path) -> None:
    sentence, hugging_face = PromptTokenizer(TOKENIZER_PATH), PromptTokenizer(tokenizer_json)
    assert sentence.vocab_size == hugging_face.vocab_size == 512
    state = np.linspace(-1.2, 1.2, 32)
    for instruction in libero_instructions():
        for carried in (None, state):
            ids = sentence.encode(instruction, carried, 400)
            assert hugging_face.encode(instruction, carried, 400) == ids
            assert ids[0] == 2
            assert 1 not in ids  # no end of sentence
    assert sentence.sha256 != hugging_face.sha256


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_give_sentencepieces_ids(tokenizer_json: Path, text: str) -> None:
    sentence = read_pieces(TOKENIZER_PATH.read_bytes(), TOKENIZER_PATH)
    hugging_face = read_pieces(tokenizer_json.read_bytes(), tokenizer_json)
    assert hugging_face.bos_id == sentence.bos_id == 2
    assert hugging_face.encode(text) == sentence.encode(text)


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer/tokenizer.json"])
def test_a_tokenizer_json_in_the_folder_is_taken(
    native: Folder, config: Callable[..., CheckpointConfig], tokenizer_json: Path, place: str
) -> None:
    (native.path / "tokenizer.model").unlink()
    (native.path / place).parent.mkdir(exist_ok=True)
    (native.path / place).write_bytes(tokenizer_json.read_bytes())
    loaded = load_checkpoint(config(layout="native", path=str(native.path)))
    assert loaded.tokenizer.path == native.path / place
    assert loaded.provenance()["tokenizer_sha256"] == PromptTokenizer(tokenizer_json).sha256


def test_sentencepieces_file_goes_before_a_tokenizer_json_beside_it(
    native: Folder, config: Callable[..., CheckpointConfig], tokenizer_json: Path
) -> None:
    (native.path / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    loaded = load_checkpoint(config(layout="native", path=str(native.path)))
    assert loaded.tokenizer.path == native.path / "tokenizer.model"


def test_tokenizers_in_two_folders_are_refused(
    native: Folder, config: Callable[..., CheckpointConfig], tokenizer_json: Path
) -> None:
    (native.path / "tokenizer").mkdir()
    inner = native.path / "tokenizer" / "tokenizer.json"
    inner.write_bytes(tokenizer_json.read_bytes())
    asked = config(layout="native", path=str(native.path))
    with pytest.raises(
        ValueError, match=r"has two tokenizers: .*native/tokenizer\.model, .*r\.json; set check"
    ):
        load_checkpoint(asked)
    load_checkpoint(replace(asked, tokenizer=str(inner)))
    with pytest.raises(
        ValueError, match=r"tokenizer must be a file, got the folder '.*name one of tokenizer\.m"
    ):
        load_checkpoint(replace(asked, tokenizer=str(inner.parent)))


def edit(change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = json.loads(converted().to_str())
    change(content)
    return json.dumps(content).encode()


def rename_bos(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<begin>"] = content["model"]["vocab"].pop("<bos>")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<bos>"]
    content["post_processor"] = None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"{}",
            r"must be a SentencePiece model or a tokenizer\.json, got .*file: .*; of a tokenizer's folder",
        ),
        (b'{"add_bos_token": true}', r"must be a SentencePiece model or a tokenizer\.json, got .*file: "),
        (
            b"version https://git-lfs.github.com/spec/v1",
            r"must be a SentencePiece model or .*take PaliGemma's",
        ),
        (b"", r"must be a SentencePiece model or a tokenizer\.json, got .*file: "),
        (
            edit(lambda c: c["model"].update(continuing_subword_prefix="text")),  # the library panics
            r"must be a SentencePiece model or a tokenizer\.json, got .*file: ",
        ),
        (
            edit(lambda c: c["model"].update(byte_fallback=False)),
            r".* characters in bytes, got .* byte_fallback",
        ),
        (edit(rename_bos), r"must have a <bos> piece, got .*file without one; take PaliGemma's"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.tokenizer " + message):
        PromptTokenizer(tmp_path / "file")


@pytest.mark.parametrize(
    ("size", "rows"),
    [(512, 512), (500, 512), (257152, 257152), (256000, 257152), (257153, 257152), (257153, 257216)],
)
def test_sizes_that_belong_together_pass(size: int, rows: int) -> None:
    check_size(size, rows, Path("file"))


@pytest.mark.parametrize(
    ("size", "rows"),
    [(512, 257152), (32000, 257152), (257154, 257152), (513, 512), (384, 512), (256000, 257216)],
)
def test_a_tokenizer_of_another_networks_size_is_refused(size: int, rows: int) -> None:
    with pytest.raises(
        ValueError, match=rf"pieces for the {rows} rows of the embedding, got {size} in file; it"
    ):
        check_size(size, rows, Path("file"))


def test_random_weights_take_the_reference_tokenizer_at_any_size(
    config: Callable[..., CheckpointConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RANDOM_SIZES, "small", replace(RANDOM_SIZES["small"], vocab_size=1024))
    assert load_checkpoint(config()).tokenizer.vocab_size == 512
    monkeypatch.setitem(RANDOM_SIZES, "small", replace(RANDOM_SIZES["small"], vocab_size=511))
    with pytest.raises(ValueError, match=r"must have 511 pieces for the 511 rows .*, got 512"):
        load_checkpoint(config())
