"""Joined, narrowed and split sources keep keys unique and pictures on one side; negatives show another picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy import Pairs

from intarsia.batch import Sample
from intarsia.data.corpora import Alongside, Joined, Pool, Subset, split
from intarsia.data.formats.plain import TextLines
from intarsia.data.source import Provenance
from intarsia.errors import BadInput


def pictures(source: Subset) -> set[str]:
    return {source[i].pictures[0].name for i in range(len(source))}


def test_a_subset_is_in_its_order() -> None:
    some = Subset(Pairs(), np.array([5, 3, 3]))
    assert [some[i].key for i in range(len(some))] == ["pair5", "pair3", "pair3"]
    assert some.provenance == Pairs.provenance
    with pytest.raises(IndexError):
        some[3]


def test_joined_sources_keep_names_apart() -> None:
    both = Joined({"a": Pairs(4), "b": Pairs(6)}, repeat={"a": 3})
    samples = [both[i] for i in range(len(both))]
    assert len(samples) == 18
    assert len({sample.key for sample in samples}) == 18
    assert [sample.key for sample in samples][::4] == ["a/pair0", "a/pair0#2", "a/pair0#3", "b/pair0", "b/pair4"]
    assert [sample.pictures[0].name for sample in samples][::6] == ["a/picture0", "a/picture1", "b/picture0"]
    assert samples[13].texts == Pairs()[1].texts
    for index in (-1, 18):
        with pytest.raises(IndexError):
            both[index]


def test_sources_of_other_features_do_not_join() -> None:
    other = Pairs(4)
    other.provenance = Provenance("toy", 5)
    with pytest.raises(BadInput, match=r"sources a and b: region features differ.*3 wide.*5 wide"):
        Joined({"a": Pairs(4), "b": other})
    for repeat in ({"c": 2}, {"a": 0}):
        with pytest.raises(BadInput, match="cannot be repeated"):
            Joined({"a": Pairs(4)}, repeat)


def test_a_split_keeps_pictures_on_one_side_and_stays_when_the_data_grows() -> None:
    rest, held = split(Pairs(400), 0.25)
    assert len(rest) + len(held) == 400
    assert not pictures(rest) & pictures(held)
    assert 0.15 < len(pictures(held)) / 200 < 0.35
    more_rest, more_held = split(Pairs(600), 0.25)
    assert pictures(held) <= pictures(more_held)
    assert pictures(rest) <= pictures(more_rest)
    assert pictures(split(Pairs(400), 0.25, seed=1)[1]) != pictures(held)
    with pytest.raises(BadInput, match="0 of 2 samples"):
        split(Pairs(2), 1e-9)


def test_negatives_show_another_picture_and_all_are_drawn() -> None:
    pool, rng = Pool(Pairs(), np.arange(0, 40)), np.random.default_rng(0)
    drawn = [pool.draw(rng, Pairs()[6]) for _ in range(600)]
    assert {sample.key for sample in drawn} == {f"pair{i}" for i in range(40) if i not in (6, 7)}
    with pytest.raises(BadInput, match="sample pair6: no other picture than picture3"):
        Pool(Pairs(), np.array([6, 7])).draw(rng, Pairs()[6])


def test_without_pictures_the_key_tells_samples_apart() -> None:
    class Texts(Pairs):
        def __getitem__(self, index: int) -> Sample:
            return replace(super().__getitem__(index), pictures=())

    pool = Pool(Texts(), np.array([6, 7]))
    assert {pool.draw(np.random.default_rng(i), Texts()[6]).key for i in range(9)} == {"pair7"}


def test_passages_run_on_until_there_are_enough_words(tmp_path: Path) -> None:
    path = tmp_path / "books.txt"
    path.write_text("one two\n\n  three four five \nsix\n", encoding="utf-8")
    lines = TextLines(path, words=4)
    assert [lines[i].texts for i in range(len(lines))] == [
        ("one two three four five",),
        ("three four five six",),
        ("six",),
    ]
    assert lines[1].pictures == ()
    with pytest.raises(IndexError):
        lines[3]


def test_bad_texts_are_told(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    with pytest.raises(BadInput, match=r"texts\.txt: cannot be read"):
        TextLines(path)
    path.write_text("\n \n")
    with pytest.raises(BadInput, match=r"texts\.txt: holds no line of text"):
        TextLines(path)
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(BadInput, match=r"texts\.txt, line 2: not UTF-8 at byte 1"):
        TextLines(path)[0]


def test_texts_alongside_come_one_for_one_and_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("a\nb\nc\n")
    both = Alongside(Pairs(4), TextLines(path, words=1))
    samples = [both[i] for i in range(len(both))]
    assert [bool(sample.pictures) for sample in samples] == [True, False] * 4
    assert [sample.texts[0] for sample in samples[1::2]] == ["a", "b", "c", "a"]
    assert len({sample.key for sample in samples}) == 8
    assert both.provenance == Pairs.provenance
