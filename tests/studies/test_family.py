"""The family study: a blind run sees nothing of its pictures, and a run is made once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.studies import family
from intarsia.system import System, fit_config
from intarsia.systems import SYSTEMS, find
from intarsia.text import Vocab
from intarsia.worlds import WorldSource

WORLD = WorldSource(count=24)


@pytest.mark.parametrize("name", [name for name in SYSTEMS if "clips" not in find(name).needs])
def test_a_blind_system_lays_out_nothing_of_its_pictures(name: str) -> None:
    """Two pictures with as many regions, whatever is in them, give the same rows."""
    cls = family.blind(find(name))
    texts = (text for i in range(24) for text in (*WORLD[i].texts, *WORLD[i].tags))
    vocab = Vocab.learn(texts, specials=cls.specials)
    assert WORLD.provenance is not None
    config = fit_config(cls.recipes["tiny"].config, len(vocab), WORLD.provenance.width, len(WORLD.provenance.classes))
    system: System = cls(config, vocab)
    one = WORLD[0]
    other = next(WORLD[i] for i in range(1, 24) if len(WORLD[i].pictures[0].boxes) == len(one.pictures[0].boxes))
    swapped = dataclasses.replace(one, pictures=other.pictures, links=())
    for goal in cls.recipes["tiny"].mix.share:
        if "itm" in goal or "match" in goal:
            continue  # breaks pairs by other captions too
        rows = [
            pack([system.hide(x, goal, np.random.default_rng(1), lambda: WORLD[5])]).regions
            for x in (dataclasses.replace(one, links=()), swapped)
        ]
        for field in ("feats", "boxes", "probs", "labels", "scores"):
            a, b = (getattr(x, field) for x in rows)
            assert (a is None) == (b is None)
            assert a is None or a.equal(b), (goal, field)


def test_runs_are_made_once_and_make_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    mark = "<!-- {}: written by python -m intarsia.studies.family -->\n\nold\n\n<!-- {}: end -->\n"
    page.write_text(f"# Title\n\nWords.\n\n{mark.format('worlds', 'worlds')}\nMore.\n\n{mark.format('b', 'b')}")
    order = ["--data", "worlds:40", "--valid", "worlds:20:1", "--out", str(tmp_path), "--systems", "uniter"]
    order += ["--steps", "8", "--rows", "200", "--candidates", "8", "--workers", "0", "--page", str(page)]
    family.main(order)
    result = json.loads((tmp_path / "uniter-seeing/result.json").read_text())
    assert {"mlm", "mrfr", "itm"} <= result["valid"].keys()
    written = page.read_text()
    assert written.startswith("# Title\n\nWords.\n")
    assert written.count("old") == 1
    assert written.endswith(f"\nMore.\n\n{mark.format('b', 'b')}")
    assert "| uniter | mlm |" in written
    before = (tmp_path / "uniter-seeing/metrics.jsonl").read_bytes()
    family.main(order)
    assert (tmp_path / "uniter-seeing/metrics.jsonl").read_bytes() == before
    assert page.read_text() == written
    with pytest.raises(BadInput, match="no section 'c'"):
        family.main([*order, "--section", "c"])
    capsys.readouterr()


def test_the_table_names_the_numbers_of_all_seeds() -> None:
    def found(sees: bool, mlm: float, itm: float) -> dict[str, Any]:
        ranked = {"retrieval": [0.5, mlm]} if sees else {}
        return {"system": "x", "sees": sees, "valid": {"mlm": mlm, "itm": itm}, "seconds": 90} | ranked

    lines = family.table([found(True, 0.4, 0.125), found(True, 0.3, 0.25), found(False, 0.9, 0.69)]).splitlines()
    assert lines[2:] == [
        "| x | mlm | 0.4, 0.3 | 0.9 | 50 % / 40 %, 50 % / 30 % | 1.5, 1.5 |",
        "|  | itm | 0.125, 0.25 | 0.69 |  |  |",
    ]
