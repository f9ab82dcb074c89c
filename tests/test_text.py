"""Vocabularies: BERT's tokenisation, words, spans, Chinese; files there and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.errors import BadInput
from intarsia.text import SPECIALS, Vocab

VOCAB = Vocab([*SPECIALS, "!", ",", "un", "##want", "##ed", "run", "##ning", "café", "cafe", "一", "只", "猫"])


def test_pieces_words_and_spans() -> None:
    text = "Unwanted, running!"
    found = VOCAB.encode(text)
    assert [VOCAB.tokens[i] for i in found.ids] == ["un", "##want", "##ed", ",", "run", "##ning", "!"]
    assert found.words.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert [text[a:b] for a, b in found.spans] == ["Un", "want", "ed", ",", "run", "ning", "!"]


def test_lower_case_vocabularies_strip_accents() -> None:
    assert VOCAB.lower
    assert [VOCAB.tokens[i] for i in VOCAB.encode("CAFÉ").ids] == ["cafe"]
    cased = Vocab([*SPECIALS, "Café", "café"])
    assert not cased.lower
    assert [cased.tokens[i] for i in cased.encode("Café").ids] == ["Café"]


def test_every_han_character_is_a_word() -> None:
    found = VOCAB.encode("一只猫")
    assert found.words.tolist() == [0, 1, 2]
    assert [VOCAB.tokens[i] for i in found.ids] == ["一", "只", "猫"]


def test_unknown_words_are_one_piece() -> None:
    assert VOCAB.encode("zebra run").ids.tolist() == [VOCAB.unk, VOCAB.index["run"]]


def test_special_tokens_in_a_text_are_plain_text() -> None:
    assert VOCAB.mask not in VOCAB.encode("[MASK] run").ids


def test_random_pieces_come_from_the_exclamation_mark_on() -> None:
    assert VOCAB.first_ordinary == VOCAB.index["!"]
    assert Vocab([*SPECIALS, "a"]).first_ordinary == len(SPECIALS)


def test_there_and_back(tmp_path: Path) -> None:
    VOCAB.write(tmp_path / "vocab.txt")
    assert Vocab.read(tmp_path / "vocab.txt").tokens == VOCAB.tokens
    assert VOCAB.decode(VOCAB.encode("unwanted running").ids) == "unwanted running"


def test_learning_repeats_and_knows_its_texts() -> None:
    texts = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("star", "ring")] * 5
    one = Vocab.learn(texts)
    assert one.tokens == Vocab.learn(texts).tokens
    assert one.tokens[: len(SPECIALS)] == SPECIALS
    assert all(one.unk not in one.encode(text).ids for text in texts)


@pytest.mark.parametrize(
    ("tokens", "message"), [(["a"], r"special token \[PAD\] is missing"), ([*SPECIALS, "a", "a"], "'a' occurs twice")]
)
def test_bad_vocabularies(tokens: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Vocab(tokens)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read as a vocabulary"):
        Vocab.read(tmp_path / "x")
