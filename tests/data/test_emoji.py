"""Emoji with labels: which are read, and a data folder made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intarsia.data.emoji import NOTICE, read_emoji
from intarsia.data.fetch import NOTE, cache_root
from intarsia.data.formats.pairs import PairsFolder
from intarsia.data.stamps import compose
from intarsia.errors import BadInput

FETCHED = cache_root() / "emoji"


def entry(code: str, label: str, **more: Any) -> dict[str, Any]:
    return {"hexcode": code, "label": label, "group": 4, "tags": [], **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    codes = [f"1F3{number:02X}" for number in range(30)]
    for code in [*codes, "1F1EF"]:
        picture = np.zeros((64, 64, 4), np.uint8)
        picture[8:-8, 8:-8] = (*rng.integers(0, 255, 3), 255)
        mark = "-fe0f" if code == codes[0] else ""
        Image.fromarray(picture).save(tmp_path / f"pictures/{code.lower()}{mark}.png")
    for language, label in (("en", "fruit {}"), ("zh", "水果{}")):
        named = [entry(code, label.format(number)) for number, code in enumerate(codes)]
        named[1]["label"] = "flag: Fruit" if language == "en" else "旗: 水果"
        lines = [*named, entry("1F1EF", "letter", group=9), entry("1F999", "not drawn")]
        (tmp_path / f"labels-{language}.json").write_text(json.dumps(lines), encoding="utf-8")
    return tmp_path


def test_things_with_a_picture_are_read(root: Path) -> None:
    found = read_emoji(root)
    assert len(found) == 30
    assert found[0].file.name == "1f300-fe0f.png"
    assert found[0].captions == {"en": "fruit 0", "zh": "水果0"}
    assert found[0].kind == "food"
    assert found[1].captions["en"] == "flag: Fruit"
    assert found[1].phrases == {}


def test_a_data_folder_is_made_of_them(root: Path, tmp_path: Path) -> None:
    made = compose(read_emoji(root, ("zh",)), tmp_path / "out", ("zh",), scenes=10, notice=NOTICE)
    assert (made.stamps, made.held_out, made.captions) == (30, 6, {"zh": 40})
    source = PairsFolder(tmp_path / "out", "test")
    assert len(source) == 8
    assert any("和" in source[i].texts[0] for i in range(8))
    assert "emoji" in (tmp_path / "out/NOTICE").read_text()


def test_labels_that_are_missing_or_damaged_are_named(root: Path) -> None:
    with pytest.raises(BadInput, match=r"labels-fr.json: no such labels; run `intarsia data fetch emoji`"):
        read_emoji(root, ("fr",))
    (root / "labels-zh.json").write_text("[{}]")
    with pytest.raises(BadInput, match=r"labels-zh.json: not emojibase's labels: 'label'"):
        read_emoji(root)


@pytest.mark.skipif(not (FETCHED / NOTE).is_file(), reason="emoji are not fetched")
def test_the_real_emoji_have_both_languages() -> None:
    found = read_emoji(FETCHED)
    assert len(found) > 1200
    assert all(set(x.captions) == {"en", "zh"} for x in found)
    assert next(x for x in found if x.captions["en"] == "avocado").captions["zh"] == "鳄梨"
