from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pair_makers import folder, jpeg, line, picture

from intarsia.cli_data import data
from intarsia.data import tar_writer
from intarsia.data.check import check
from intarsia.data.decode import decode_image
from intarsia.data.formats.regions import write_regions
from intarsia.data.formats.tar import write_tar
from intarsia.data.opening import open_source
from intarsia.data.tar_writer import write_tars
from intarsia.errors import BadInput

KARPATHY = {
    "images": [
        {"filename": f"{i}.jpg", "imgid": i, "split": split, "sentences": [{"raw": f"dog {i}"}, {"raw": f"a dog {i}"}]}
        for i, split in enumerate(("train", "val", "test"))
    ]
}


def karpathy(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for i in range(3):
        (root / "images" / f"{i}.jpg").write_bytes(jpeg(i))
    (root / "dataset_flickr8k.json").write_text(json.dumps(KARPATHY))
    return root / "dataset_flickr8k.json"


def test_a_caption_file_and_its_pictures_become_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = karpathy(tmp_path / "in"), tmp_path / "out"
    data(["convert", str(source), str(out), "--layout", "tar"])
    assert "3 samples written into 1 tars, 0 were there, 0 left out" in capsys.readouterr().out
    with tarfile.open(out / "00000.tar") as archive:
        assert archive.getnames() == [f"{i}.{x}" for i in range(3) for x in ("jpg", "json")]
        member = archive.extractfile("1.jpg")
        assert member is not None and member.read() == jpeg(1)
    again = open_source(out)
    assert [x.texts[0] for x in again] == [x.texts[0] for x in open_source(source)]
    assert again.index.splits == {"train": 1, "val": 1, "test": 1}
    np.testing.assert_array_equal(decode_image(again[2].pictures[0].path), decode_image(jpeg(1)))


def test_regions_and_links_come_along(tmp_path: Path) -> None:
    boxes = line(key="b.1", boxes=[[1, 2, 9, 9]], labels=["dog"], links=[[0, 2, 5, 0]], answers=[["dog", 1.0]])
    whole = open_source(folder(tmp_path / "in", boxes, line(key="r", regions="r.npz", links=[[0, 2, 5, 1]])))
    write_regions(tmp_path / "in" / "r.npz", picture(3))
    write_tars(whole, tmp_path / "out")  # type: ignore[arg-type]
    again = {x.key.replace("b_1", "b.1"): x for x in open_source(tmp_path / "out")}
    assert len(again) == len(whole) == 2
    for sample in whole:
        found = again[sample.key]
        assert (found.texts, found.links, found.answers) == (sample.texts, sample.links, sample.answers)
        for mine, theirs in zip(found.pictures, sample.pictures, strict=True):
            np.testing.assert_array_equal(mine.features, theirs.features)
            np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=1e-6)


def test_a_killed_run_goes_on_and_missing_pictures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = karpathy(tmp_path / "in")
    monkeypatch.setattr(tar_writer, "LINES", 2)
    (tmp_path / "in" / "images" / "2.jpg").unlink()
    with pytest.raises(BadInput, match=r"record 2: the pixels of picture 2\.jpg are not at hand"):
        write_tars(open_source(source), tmp_path / "out")  # type: ignore[arg-type]
    assert [x.name for x in (tmp_path / "out").glob("*.tar")] == ["00000.tar"]
    before = (tmp_path / "out" / "00000.tar").stat().st_mtime_ns
    (tmp_path / "in" / "images" / "2.jpg").write_bytes(jpeg(2))
    done = write_tars(open_source(source), tmp_path / "out")  # type: ignore[arg-type]
    assert (done.tars, done.samples, done.before) == (1, 1, 2)
    assert (tmp_path / "out" / "00000.tar").stat().st_mtime_ns == before
    (tmp_path / "in" / "images" / "0.jpg").write_bytes(b"no picture")
    done = write_tars(open_source(source), tmp_path / "o", "skip")  # type: ignore[arg-type]
    assert done.samples == 2 and "picture 0.jpg is neither JPEG" in done.problems[0]
    for i in (1, 2):
        (tmp_path / "in" / "images" / f"{i}.jpg").unlink()
    with pytest.raises(BadInput, match="none: no line can be used; the first: "):
        write_tars(open_source(source), tmp_path / "none", "skip")  # type: ignore[arg-type]
    assert not list((tmp_path / "none").iterdir())


def test_fashiongen_is_inspected_checked_and_written_as_tars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fashiongen_256_256_validation.h5"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    with h5py.File(path, "w") as file:
        file["input_image"] = pixels
        for name in ("description", "category", "subcategory", "productID"):
            file[f"input_{name}"] = np.array([[f"{name} {i}".encode()] for i in range(2)])
    for command in (
        ["inspect", str(path)],
        ["check", str(path)],
        ["convert", str(path), str(tmp_path / "out"), "--layout", "tar"],
    ):
        data(command)
    said = capsys.readouterr().out
    assert "with pixels        2 pictures" in said and "2 pictures looked at, 2 decoded" in said
    again = open_source(tmp_path / "out")
    np.testing.assert_array_equal(decode_image(again[1].pictures[0].path), pixels[1])
    assert again[1].texts == ("description 1",) and again[1].pictures[0].tags == ("subcategory 1", "category 1")


def test_any_data_set_becomes_pairs_to_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files stay where they are, pictures inside other files come along, regions and links too; and a run may be repeated."""
    path = karpathy(tmp_path)
    source = open_source(path)
    data(["convert", str(path), str(tmp_path / "files"), "--layout", "pairs", "--on-error", "skip"])
    again = open_source(tmp_path / "files")
    assert not (tmp_path / "files/images").exists() and 0 < len(again) <= len(source)
    assert check(str(tmp_path / "files")).decoded == len({x.pictures[0].name for x in again})  # type: ignore[attr-defined]
    shown = picture(0)
    write_tar(
        tmp_path / "x/0.tar",
        [
            (
                "a_b",
                {"caption": "a dog", "links": [[0, 2, 5, 1]]},
                [("jpg", jpeg(1, 40, 30))],
                [replace(shown, width=40, height=30)],
            )
        ],
    )
    for _ in range(2):
        data(["convert", str(tmp_path / "x"), str(tmp_path / "out"), "--layout", "pairs"])
    said = capsys.readouterr().out
    assert "1 lines written, 2 files beside them" in said and "1 lines written, 0 files beside them" in said
    (one,), (other,) = open_source(tmp_path / "x"), open_source(tmp_path / "out")
    assert one.texts == other.texts and one.links == other.links and one.key == other.key
    np.testing.assert_array_equal(other.pictures[0].features, one.pictures[0].features)
    np.testing.assert_array_equal(decode_image(other.pictures[0].path), decode_image(one.pictures[0].path))
    (tmp_path / "annot.json").write_text(json.dumps([["none.jpg", "a dog"]]))
    with pytest.raises(
        BadInput, match="no line can be used; the first: .* the pixels of picture none.jpg are not at hand"
    ):
        data(
            ["convert", str(tmp_path / "annot.json"), str(tmp_path / "none"), "--layout", "pairs", "--on-error", "skip"]
        )
    assert not (tmp_path / "none/pairs.jsonl").exists()
