"""Words inlaid on regions: read off systems, drawn, and as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia import cli
from intarsia.errors import BadInput
from intarsia.system import System
from intarsia.systems import find
from intarsia.train.start import captions, fresh
from intarsia.viz.links import Links, draw_links, links_page, word_links
from intarsia.worlds import WorldSource

WORLD = WorldSource(count=24)


def made(name: str) -> System:
    assert WORLD.provenance is not None
    return fresh(find(name), find(name).recipes["tiny"], captions(WORLD), WORLD.provenance)[0].eval()


@pytest.mark.parametrize(("name", "by"), [("inlay", "alignment"), ("uniter", "attention")])
def test_links_are_the_greatest_shares_of_the_map(name: str, by: str) -> None:
    links = word_links(made(name), WORLD[0])
    assert links.by == by
    assert links.shares.shape == (len(links.words), len(WORLD[0].pictures[0].boxes))
    assert "".join(links.words) == WORLD[0].texts[0].replace(" ", "")
    for word, row, region in zip(links.words, links.shares, links.region, strict=True):
        assert region is None or region == row.argmax()
        assert region is None or word not in ("a", "and", "of")
    with pytest.raises(BadInput, match="no word-region map 'nothing'"):
        word_links(made(name), WORLD[0], "nothing")


def test_words_of_one_region_share_its_colour_and_others_have_none() -> None:
    shares = np.array([[0.5, 0.5], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    links = Links(("a", "red", "ring", "</b>"), shares, (None, 0, 0, 1), "alignment")
    colours = [links.colour(i) for i in range(4)]
    assert colours[1] == colours[2] and len({colours[0], colours[1], colours[3]}) == 3


def test_picture_and_page(tmp_path: Path) -> None:
    shares = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    links = Links(("a", "red", "</script>"), shares, (None, 0, 1), "alignment")
    boxes = np.array([[0, 0, 0.5, 0.5], [0.4, 0.4, 1, 1]], np.float32)
    pixels = WORLD.image(0)
    draw_links(links, pixels, boxes, "inlay, alignment", tmp_path / "x.png")
    assert min(Image.open(tmp_path / "x.png").size) > 300
    links_page(links, pixels, boxes, "inlay, alignment", tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    data = json.loads(re.search(r"const links = (.*);", page)[1])  # type: ignore[index]
    assert data["words"][2] == "</script>" and page.count("</script>") == 1
    assert data["region"] == [None, 0, 1] and data["shares"][1] == [0.9, 0.1]
    assert "http" not in page


def test_the_command_draws_what_a_run_has_learnt_and_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photo = str(tmp_path / "run"), str(tmp_path / "photo.png")
    common = ["--schedule.steps", "1", "--workers", "0", "--batching.samples", "4"]
    cli.main(["pretrain", "inlay", "--data", "worlds:8", "--out", run, *common])
    Image.fromarray(WORLD.image(1)).resize((200, 200)).save(photo)
    for ending in ("png", "html"):
        out = tmp_path / f"links.{ending}"
        cli.main(["show", "links", photo, WORLD[1].texts[0], "--weights", run, "--out", str(out)])
        assert out.stat().st_size > 5000
    assert "region" in capsys.readouterr().out
    for wrong, said in (
        (["--weights", str(tmp_path)], "no such recipe"),
        (["--weights", run, "--out", "x.pdf"], r"\.png, \.svg or \.html"),
        (["--weights", run, "--by", "none"], "no word-region map"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["show", "links", photo, "a red circle", *wrong])
        assert stop.value.code == 2
        assert re.search(said, capsys.readouterr().err)
