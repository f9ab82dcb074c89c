"""MUGE's pictures, a table of base64: opened, decoded, extracted, found by the benchmark."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.cli import main
from intarsia.data.decode import pixels_of
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import find
from intarsia.tuning_runs import open_items


def png(seed: int) -> tuple[np.ndarray, bytes]:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    into = io.BytesIO()
    Image.fromarray(pixels).save(into, "PNG")
    return pixels, into.getvalue()


def test_both_kinds_of_base64_are_read_and_broken_ones_are_named(tmp_path: Path) -> None:
    path, (first, data), (second, other) = tmp_path / "IC_valid.tsv", png(0), png(1)
    path.write_bytes(b"a1\t" + base64.b64encode(data) + b"\nb2\t" + base64.urlsafe_b64encode(other) + b"\n")
    source = open_source(path)
    assert [source[i].pictures[0].name for i in range(len(source))] == ["a1", "b2"]
    for i, pixels in enumerate((first, second)):
        np.testing.assert_array_equal(pixels_of(source[i].pictures[0], "x"), pixels)
    path = tmp_path / "valid_imgs.tsv"
    path.write_bytes(b"a1\t*\nb2\t" + base64.b64encode(b"no picture") + b"\n")
    source = open_source(path)
    for i, said in enumerate((r"valid_imgs\.tsv, line 1: not base64", r"valid_imgs\.tsv, line 2: cannot be decoded")):
        with pytest.raises(BadInput, match=said):
            pixels_of(source[i].pictures[0], "x")
    path = tmp_path / "test_imgs.tsv"
    path.write_bytes(b"a1\tx\na1\tx\n")
    with pytest.raises(BadInput, match="line 2: key 'a1' was already given"):
        open_source(path)
    path = tmp_path / "train_imgs.tsv"
    path.write_bytes(b"\tx\n")
    with pytest.raises(BadInput, match="line 1: has no id before its tab"):
        open_source(path)


def test_regions_of_a_table_are_found_by_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "IC_valid.tsv").write_bytes(b"".join(b"%d\t" % i + base64.b64encode(png(i)[1]) + b"\n" for i in (7, 8)))
    (tmp_path / "IC_valid.jsonl").write_text('{"image_id": "7", "text": ["鞋"]}\n{"image_id": "8", "text": ["红鞋"]}\n')
    cells = tmp_path / "cells"
    main(["extract", str(tmp_path / "IC_valid.tsv"), "--out", str(cells), "--extractor", "patches"])
    source = open_items(find("muge-captions"), tmp_path, str(cells), "val")
    assert [(x.texts[0], x.pictures[0].name) for x in (source[0], source[1])] == [("鞋", "7"), ("红鞋", "8")]
    assert len(source[0].pictures[0].boxes) > 0
