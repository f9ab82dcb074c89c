"""The study of drawing: what is exchanged, how losses are counted, and the whole of it at a size that means nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
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


def test_the_study_runs_once_and_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "m6.md"
    page.write_text(
        "before\n<!-- drawn: written by python -m intarsia.studies.text_to_image -->\n<!-- drawn: end -->\nafter"
    )
    more = study.TextToImage(
        tmp_path, count=30, held=4, vq_steps=2, steps=2, rows=400, shown=2, seed=3, seeds=2, page=page
    )
    options, second = more.each
    assert [x.out for x in (options, second)] == [tmp_path / "seed-3", tmp_path / "seed-4"]
    found = study.run(options)
    assert set(found["as said"]) == {"truth", "rebuilt from its codes", "drawn", "drawn, blind"}
    assert all(0 < x < 20 for x in found["code loss"].values())
    weights = (options.out / "seeing" / "model.safetensors").stat().st_mtime_ns
    assert study.run(options) == found
    assert (options.out / "seeing" / "model.safetensors").stat().st_mtime_ns == weights
    other = json.loads(json.dumps(found))
    other["as said"]["drawn"]["kind"] = found["as said"]["drawn"]["kind"] + 0.5
    second.out.mkdir()
    (second.out / study.RESULT).write_text(json.dumps(other))
    monkeypatch.setattr(sys, "argv", ["study", *arguments(more)])
    study.main()
    told = page.read_text()
    low = 100 * found["as said"]["drawn"]["kind"]
    assert f"| drawn | {low + 25:.0f} % ({low:.0f} - {low + 50:.0f}) |" in told, "mean, lowest, highest"
    assert f"| trained with the descriptions | {found['code loss']['seeing']:.3f} |" in told, "alike: told once"
    assert told.startswith("before") and "m6_pictures.png" in told and "2. " in told and "3. " not in told
    with Image.open(tmp_path / "m6_pictures.png") as drawn:
        assert drawn.size[0] > 600


def arguments(options: study.TextToImage) -> list[str]:
    """The options as the command line has them."""
    given = {x.name: getattr(options, x.name) for x in dataclasses.fields(options)}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
