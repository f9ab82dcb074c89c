"""The study of drawing: what is exchanged, how losses are counted, and the whole of it at a size that means nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.studies import text_to_image as study
from intarsia.worlds.product_source import ProductSource


def test_exchanged_texts_are_all_there_and_none_is_at_home() -> None:
    source = ProductSource(count=30, language="zh")
    other = study.Elsewhere(source)
    assert sorted(other[i].texts[0] for i in range(30)) == sorted(source[i].texts[0] for i in range(30))
    assert sorted(other.other.tolist()) == list(range(30)) and (other.other != np.arange(30)).all()
    assert all(other[i].pictures[0].name == source[i].pictures[0].name for i in range(30))


def test_the_judge_knows_the_pictures_it_was_given() -> None:
    source = ProductSource(count=60)
    judge = study.Judge(source, 64)
    true = study.read_pictures(source, 64, 60)
    assert judge(true, source) == {"kind": 1.0, "colour": 1.0, "both": 1.0}
    mixed = judge(np.roll(true, 1, 0), source)
    pairs = [(source.product(i), source.product((i - 1) % 60)) for i in range(60)]
    assert mixed["kind"] == pytest.approx(np.mean([a.kind == b.kind for a, b in pairs]))
    assert mixed["colour"] == pytest.approx(np.mean([a.colour == b.colour for a, b in pairs]))


def test_the_study_runs_once_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "m6.md"
    page.write_text(
        "before\n<!-- drawn: written by python -m intarsia.studies.text_to_image -->\n<!-- drawn: end -->\nafter"
    )
    options = study.TextToImage(tmp_path / "run", count=30, held=4, vq_steps=2, steps=2, rows=400, shown=2, page=page)
    found = study.run(options)
    assert set(found["as said"]) == {"truth", "rebuilt from its codes", "drawn", "drawn, blind"}
    assert all(0 < x < 20 for x in found["code loss"].values())
    weights = (tmp_path / "run" / "seeing" / "model.safetensors").stat().st_mtime_ns
    assert study.run(options) == found
    assert (tmp_path / "run" / "seeing" / "model.safetensors").stat().st_mtime_ns == weights
    told = study.tell(options, found)
    study.write_section(page, "drawn", told, "text_to_image")
    assert (
        "m6_pictures.png" in page.read_text()
        and page.read_text().startswith("before")
        and "2. " in told
        and "3. " not in told
    )
    with Image.open(tmp_path / "m6_pictures.png") as drawn:
        assert drawn.size[0] > 600
