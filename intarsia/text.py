"""Vocabularies: text to pieces with their words and character spans, and back.

Tokenisation is BERT's (clean, split on white space, punctuation and Han characters, greedy WordPiece), or RoBERTa's (bytes, merged), done by the
`tokenizers` library. A vocabulary is the field's `vocab.txt`, or is learnt from captions when there is none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from intarsia.errors import BadInput

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class Pieces:
    """A tokenised text without special tokens; all arrays have n rows."""

    ids: NDArray[np.int64]
    """(n) ids in the vocabulary."""
    words: NDArray[np.int64]
    """(n) number of the word each piece belongs to, from 0."""
    spans: NDArray[np.int64]
    """(n, 2) first and past-last character of each piece in the text."""

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int | None, stop: int | None) -> Pieces:
        """The pieces from `start` to before `stop`, as of a slice; words keep their numbers."""
        return Pieces(self.ids[start:stop], self.words[start:stop], self.spans[start:stop])


class Vocab:
    """A WordPiece vocabulary.

    Args:
        tokens: the pieces in id order, special tokens among them.
        lower: lower-case and strip accents; None = exactly if no ordinary piece holds an upper-case letter.
        where: file named in errors.

    Raises:
        BadInput: a special token is missing or a piece occurs twice.
    """

    specials: ClassVar[tuple[str, ...]] = SPECIALS
    """Names of padding, unknown, first, closing and hidden piece."""

    def __init__(self, tokens: Sequence[str], lower: bool | None = None, where: str = "vocabulary") -> None:
        self.tokens = tuple(tokens)
        self.index = {token: i for i, token in enumerate(self.tokens)}
        missing = [token for token in self.specials if token not in self.index]
        if missing:
            raise BadInput(f"{where}: the special token {missing[0]} is missing among its {len(self.tokens)} pieces")
        if len(self.index) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.index[token] != i)
            raise BadInput(f"{where}: the piece {twice!r} occurs twice")
        self.pad, self.unk, self.cls, self.sep, self.mask = (self.index[token] for token in self.specials)
        plain = (token for token in self.tokens if not token.startswith("["))
        self.lower = not any(token != token.lower() for token in plain) if lower is None else lower
        self._tokenizer = self._cutter()

    def _cutter(self) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(self.index, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=self.lower)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def first_ordinary(self) -> int:
        """Id from which random replacements are drawn: that of "!" where there is one, else past the last special token."""
        return self.index.get("!", max(self.pad, self.unk, self.cls, self.sep, self.mask) + 1)

    @classmethod
    def read(cls, path: Path | str, lower: bool | None = None) -> Vocab:
        """Reads a `vocab.txt`: one piece a line, the line number is the id. Or RoBERTa's `vocab.json`, beside which `merges.txt` lies.

        Raises:
            BadInput: no such file, not UTF-8, or not a vocabulary.
        """
        lines = _lines(path)
        if Path(path).suffix == ".json":
            return BytePieces(_in_order(lines, str(path)), _lines(Path(path).with_name("merges.txt")), str(path))
        if "<s>" in lines and "[CLS]" not in lines:
            return BytePieces([x for x in lines if " " not in x], [x for x in lines if " " in x], str(path))
        return cls(lines, lower, str(path))

    def write(self, path: Path | str) -> None:
        """Writes the vocabulary as a `vocab.txt`."""
        Path(path).write_text("\n".join(self.tokens) + "\n", encoding="utf-8")

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        size: int = 8000,
        lower: bool = True,
        more: Iterable[str] = (),
        specials: Sequence[str] = (),
    ) -> Vocab:
        """A vocabulary of at most `size` pieces: every character, first in a word and inside one, then the commonest words, ties by spelling.

        The same texts give the same vocabulary, which the trainers of `tokenizers` do not promise. For small corpora; a large one is better served by
        a published vocabulary, which shares parts of words. What only `more` holds (object tags, say) comes after what the texts hold; `specials` come before all of it.
        """
        normalizer, cutter = normalizers.BertNormalizer(lowercase=lower), pre_tokenizers.BertPreTokenizer()

        def count(texts: Iterable[str]) -> Counter[str]:
            return Counter(w for text in texts for w, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)))

        words, others = count(texts), count(more)
        letters = sorted({letter for word in words | others for letter in word})
        inner = sorted({letter for word in words | others for letter in word[1:]})
        common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
        common += sorted(
            (word for word in others if len(word) > 1 and word not in words), key=lambda word: (-others[word], word)
        )
        return cls([*SPECIALS, *specials, *letters, *(f"##{x}" for x in inner), *common][:size], lower)

    @classmethod
    def gb2312(cls, specials: Sequence[str] = ()) -> Vocab:
        """The characters of Chinese, as Chinese BERT cuts text, with ids of our own: special tokens, ASCII, punctuation, the 6,763 of GB 2312.

        Words of Latin letters and digits fall into single letters. The codec of Python gives the characters, so nothing is downloaded.
        """
        ascii_ = [chr(i) for i in range(33, 127) if not chr(i).isupper()]
        inner = [f"##{x}" for x in ascii_ if x.isalnum()]
        marks = [bytes((row, i)).decode("gb2312") for row in (0xA1, 0xA3) for i in range(0xA1, 0xFF)]
        han = [bytes((row, i)).decode("gb2312", "ignore") for row in range(0xB0, 0xF8) for i in range(0xA1, 0xFF)]
        more = [x for x in (*marks, *han) if x.strip() and x == x.lower()]
        return cls(list(dict.fromkeys([*SPECIALS, *specials, *ascii_, *inner, *more])), lower=True, where="gb2312")

    def encode(self, text: str) -> Pieces:
        """Cuts a text into pieces, without [CLS] and [SEP]."""
        return _pieces(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_many(self, texts: Sequence[str]) -> list[Pieces]:
        """`encode` of many texts, on all cores the `tokenizers` library may use."""
        return [_pieces(x) for x in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Pieces joined to readable text, special tokens left out."""
        special = {self.pad, self.cls, self.sep, self.mask}
        return str(self._tokenizer.decode([int(i) for i in ids if int(i) not in special]))


class BytePieces(Vocab):
    """RoBERTa's vocabulary: a text's bytes, merged pair by pair; a piece that begins a word holds the blank before it. Case counts.

    Its `vocab.txt` has the pieces, then the merges, which are the lines with a blank.

    Args:
        tokens: the pieces in id order, <s>, <pad>, </s>, <unk> and <mask> among them.
        merges: lines of two pieces, the first to be merged first; a line that begins with "#version" is passed over.
        where: file named in errors.

    Raises:
        BadInput: a special token is missing, a piece occurs twice, or a merge is not of two pieces that give a third.
    """

    specials = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], where: str = "vocabulary") -> None:
        known = set(tokens)
        self.merges = tuple(x for x in merges if x and not x.startswith("#version"))
        for merge in self.merges:
            if merge.count(" ") != 1 or merge.replace(" ", "") not in known or not known.issuperset(merge.split(" ")):
                raise BadInput(f"{where}: the merge {merge!r} is not of two pieces that give a third")
        super().__init__(tokens, False, where)

    def _cutter(self) -> Tokenizer:
        merges = [(first, second) for first, second in (x.split(" ") for x in self.merges)]
        tokenizer = Tokenizer(models.BPE(self.index, merges, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def write(self, path: Path | str) -> None:
        """Writes pieces and merges as a `vocab.txt`."""
        Path(path).write_text("\n".join([*self.tokens, *self.merges]) + "\n", encoding="utf-8")


def _lines(path: Path | str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as a vocabulary: {error}") from None


def _in_order(lines: list[str], where: str) -> list[str]:
    """The pieces of a `vocab.json` by their ids, which must be 0, 1, 2, .."""
    try:
        ids = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON: {error}") from None
    if not isinstance(ids, dict) or sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str):
        raise BadInput(f"{where}: does not number its pieces from 0")
    return sorted(ids, key=lambda token: ids[token])


def _pieces(encoding: Any) -> Pieces:
    words = np.array(encoding.word_ids, dtype=np.int64)
    return Pieces(
        np.array(encoding.ids, dtype=np.int64), words, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    )
