"""WordPiece vocabularies: text to pieces with their words and character spans, and back.

Tokenisation is BERT's (clean, split on white space, punctuation and Han characters, greedy WordPiece), done by the `tokenizers` library. A
vocabulary is the field's `vocab.txt`, or is learnt from captions when there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

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

    def __init__(self, tokens: Sequence[str], lower: bool | None = None, where: str = "vocabulary") -> None:
        self.tokens = tuple(tokens)
        self.index = {token: i for i, token in enumerate(self.tokens)}
        missing = [token for token in SPECIALS if token not in self.index]
        if missing:
            raise BadInput(f"{where}: the special token {missing[0]} is missing among its {len(self.tokens)} pieces")
        if len(self.index) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.index[token] != i)
            raise BadInput(f"{where}: the piece {twice!r} occurs twice")
        self.pad, self.unk, self.cls, self.sep, self.mask = (self.index[token] for token in SPECIALS)
        plain = (token for token in self.tokens if not token.startswith("["))
        self.lower = not any(token != token.lower() for token in plain) if lower is None else lower
        tokenizer = Tokenizer(models.WordPiece(self.index, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=self.lower)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def first_ordinary(self) -> int:
        """Id from which random replacements are drawn: that of "!" where there is one, else past the last special token."""
        return self.index.get("!", max(self.pad, self.unk, self.cls, self.sep, self.mask) + 1)

    @classmethod
    def read(cls, path: Path | str, lower: bool | None = None) -> Vocab:
        """Reads a `vocab.txt`: one piece a line, the line number is the id.

        Raises:
            BadInput: no such file, not UTF-8, or not a WordPiece vocabulary.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: cannot be read as a vocabulary: {error}") from None
        return cls(text.removesuffix("\n").split("\n"), lower, str(path))

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


def _pieces(encoding: Any) -> Pieces:
    words = np.array(encoding.word_ids, dtype=np.int64)
    return Pieces(
        np.array(encoding.ids, dtype=np.int64), words, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    )
