from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from more_makers import MORE, NO_SIZE
from store_makers import (
    MAKERS,
    NAMES,
    F,
    H,
    W,
    arrays,
    b64,
    butd,
    lxmert,
    msgpack_bytes,
    npz_by_hand,
    oscar,
    put,
    uniter_arrays,
    uniter_msgpack,
)

from intarsia.batch import Picture
from intarsia.cli_data import data
from intarsia.data import store_writers
from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats.names import picture_key
from intarsia.data.formats.npz import read_npz
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.uniter_lmdb import UniterLmdb
from intarsia.data.opening import open_source
from intarsia.data.stores import open_store
from intarsia.errors import BadInput

EVERY = MAKERS | MORE


def opened(path: Path) -> Any:
    store = open_store(path, width=F)
    assert store is not None
    return store


def expect(picture: Picture, number: int, extras: set[str], size: bool = True, estimated: bool = False) -> None:
    """That a picture is what `arrays` says; float16 layouts hold its numbers exactly, but for boxes and probabilities."""
    a = arrays(number)
    np.testing.assert_array_equal(picture.features.astype(np.float32), a["features"])
    x = a["boxes"]
    whole = [x[:, 2].max() + 1e-5, x[:, 3].max() + 1e-5] * 2 if estimated else [W, H, W, H]
    np.testing.assert_allclose(picture.boxes, x / whole, atol=5e-4)
    assert picture.boxes.dtype == np.float32
    if size:
        assert (picture.width, picture.height) == (W, H)
    has = {
        "labels": a["objects"] + 1,
        "scores": a["conf"],
        "probs": a["probs"],
        "attributes": a["attrs"] + 1,
        "attribute_scores": a["attr_conf"],
    }
    for name, values in has.items():
        found = getattr(picture, name)
        assert (found is not None) == (name in extras), name
        if found is not None:
            np.testing.assert_allclose(found, values, atol=5e-4)


@pytest.mark.parametrize("name", EVERY)
def test_every_layout_is_opened_by_looking(name: str, tmp_path: Path) -> None:
    make, extras = EVERY[name]
    store = opened(make(tmp_path))
    store = pickle.loads(pickle.dumps(store))
    assert {picture_key(x) for x in store.names} == {"42", "73", "139"}
    for number, stored in enumerate(store.names):
        expect(
            store.picture(number),
            [picture_key(x) for x in NAMES].index(picture_key(stored)),
            extras,
            name not in NO_SIZE,
            name == "vlp",
        )


@pytest.mark.parametrize(
    "name", ["uniter", "vilbert", "volta-h5", "butd", "lxmert-gzip", "oscar-torch-old", "vl_bert-zip", "tensorpack"]
)
def test_stores_are_read_in_forked_processes(name: str, tmp_path: Path) -> None:
    store = opened(EVERY[name][0](tmp_path))
    whole = [store.picture(i).features for i in range(3)]
    loader = torch.utils.data.DataLoader(
        Stored(store), batch_size=None, num_workers=2, multiprocessing_context="fork", collate_fn=lambda x: x
    )
    for found, features in zip(loader, whole, strict=True):
        np.testing.assert_array_equal(found, features)


class Stored(torch.utils.data.Dataset[Any]):
    def __init__(self, store: Any) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> Any:
        return self.store.picture(number).features


@pytest.mark.parametrize("name", EVERY)
def test_every_layout_can_be_inspected_and_checked(name: str, tmp_path: Path) -> None:
    path = EVERY[name][0](tmp_path)
    report = inspect(str(path), width=F)
    assert (report.pictures, report.looked_at, report.widths, report.skipped) == (3, 3, {F: 3}, ())
    assert check(str(path), width=F).usable == 3
    left = {"vl_bert-folder": "image_box_feature", "vl_bert-zip": "image_box_feature", "tensorpack-volta": "attrs"}
    assert report.ignored == ({left[name]: 3} if name in left else {})


@pytest.mark.parametrize("make", [butd, uniter_msgpack])
def test_features_given_as_a_data_set_are_told_from_one(make: Any, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"region features \(.+\), no data set; make it one: `intarsia data convert .+ OUT --extractor"
    ):
        open_source(make(tmp_path))


def pairs(root: Path) -> Path:
    lines = [json.dumps({"image": f"{n}.jpg", "captions": [f"a picture of {n[-2:]}", "one more"]}) for n in NAMES]
    (root / "pairs.jsonl").write_text("\n".join([*lines, json.dumps({"image": "7.jpg", "caption": "not stored"})]))
    return root / "pairs.jsonl"


@pytest.mark.parametrize("name", EVERY)
def test_every_layout_becomes_shards(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make, extras = EVERY[name]
    done = convert(
        make(tmp_path / "in"), tmp_path / "out", "shards", extractor="butd", pairs=str(pairs(tmp_path)), width=F
    )
    assert (done.written, done.lines, done.lines_left_out) == (3, 3, 1)
    source = ShardSource(tmp_path / "out", verify=True)
    assert len(source) == 6 and source.provenance is not None and source.provenance.extractor == "butd"
    assert source.provenance.settings["converted from"]
    expect(source[0].pictures[0], 0, extras, name not in NO_SIZE, name == "vlp")
    assert source[0].texts == ("a picture of 42",)
    if name == "oscar":
        assert source[0].pictures[0].tags == ("thing 0", "thing 1", "thing 2")


WRITERS = {
    "butd": "x.tsv",
    "lxmert": "x.tsv",
    "oscar": "x.feature.tsv",
    "uniter": "all",
    "uniter-npz": "all",
    "vilbert": "v",
    "volta-h5": "x.h5",
}


@pytest.mark.parametrize("layout", WRITERS)
def test_what_is_written_reads_as_the_same_pictures(layout: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = tmp_path / WRITERS[layout]
    assert convert(lxmert(tmp_path / "in"), target, layout).written == 3
    kept = {"lxmert": MAKERS["lxmert"][1], "volta-h5": MAKERS["volta-h5"][1], "butd": set(), "vilbert": set()}
    store = opened(target)
    for number in range(3):
        expect(store.picture(number), number, kept.get(layout, {"scores"}), not layout.startswith("uniter"))
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(".")]
    with pytest.raises(BadInput, match="already there"):
        convert(tmp_path / "in" / "val2014_obj36.tsv", target, layout)


@pytest.mark.parametrize("layout", ["butd", "oscar", "uniter", "vilbert"])
def test_a_killed_conversion_goes_on(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writers.LmdbWriter, "every", 1)
    (tmp_path / "in").mkdir()
    source, target = lxmert(tmp_path / "in"), tmp_path / WRITERS[layout]
    kind = store_writers.TsvWriter if layout in ("butd", "oscar") else store_writers.LmdbWriter
    add, calls = kind.add, []

    def dies(self: Any, picture: Picture) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(picture.name)
        add(self, picture)

    monkeypatch.setattr(kind, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, layout)
    assert not target.exists()
    partial = target.with_name(f".{target.name}.partial")
    if partial.is_file():  # as if the kill fell into a line
        with open(partial, "ab") as handle:
            handle.write(b"COCO_half\t1")
    monkeypatch.setattr(kind, "add", add)
    (tmp_path / "other.tsv").write_text(f"9\t{W}\t{H}\t1\t{b64([1, 1, 9, 9])}\t{b64(np.ones(F))}\n")
    with pytest.raises(BadInput, match=r"begun with other pictures \(COCO_val2014_000000000042"):
        convert(tmp_path / "other.tsv", target, layout)
    done = convert(source, target, layout)
    assert (done.written, done.before) == (1, 2)
    store = opened(target)
    for number in range(3):
        np.testing.assert_array_equal(store.picture(number).features, arrays(number)["features"])


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_is_refused_by_name_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bad = put(tmp_path / "bad", {b"7": pickle.dumps({"features": Hostile(mark)}), b"keys": pickle.dumps([b"7"])})
    with pytest.raises(BadInput, match=r"picture 7: refused: it wants \w+\.mkdir"):
        check(str(bad))
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "8.npy", np.array({"features": Hostile(mark)}, dtype=object), allow_pickle=True)
    assert "mkdir" in check(str(tmp_path / "npy"), on_error="skip").problems[0]
    listed = put(tmp_path / "list", {b"7": b"", b"keys": pickle.dumps(Hostile(mark))})
    with pytest.raises(BadInput, match="mkdir"):
        opened(listed)
    assert not mark.exists()


def test_objects_in_npz_and_msgpack_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, features=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"here: not a readable \.npz: an array of objects"):
        read_npz(buffer.getvalue(), "here")
    entry = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": b"x"}
    path = put(tmp_path / "all", {b"a": msgpack.packb({"features": entry}, use_bin_type=True), b"__keys__": b'["a"]'})
    with pytest.raises(BadInput, match="picture a: features: not an array in msgpack: an array of objects"):
        opened(path).picture(0)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 2)])
def test_npz_reads_as_numpy(compressed: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    made = {
        "a": rng.random(shape).astype(np.float32),
        "b": np.asfortranarray(rng.integers(0, 9, (3, 5))),
        "c": np.array(["x", "yz"]),
    }
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **made)  # type: ignore[operator]
    found = read_npz(buffer.getvalue(), "here")
    assert list(found) == list(made)
    for name, array in made.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


def test_a_flipped_byte_of_an_npz_is_found() -> None:
    data = bytearray(npz_by_hand(uniter_arrays(0), 0))
    data[500] ^= 1
    with pytest.raises(BadInput, match="checksum"):
        read_npz(bytes(data), "here")
    with pytest.raises(BadInput, match="no zip directory"):
        read_npz(bytes(data[:-30]), "here")


def test_uniter_keeps_the_regions_its_folder_says(tmp_path: Path) -> None:
    conf = np.array([0.9, 0.5, 0.25, 0.1, 0.05], "<f2")
    a = {**{k: np.concatenate([v, v])[:5] for k, v in uniter_arrays(0).items()}, "conf": conf}
    for folder, count in (
        ("feat_th0.2_max100_min1", 3),
        ("feat_th0.2_max2_min1", 2),
        ("feat_th0.2_max100_min4", 4),
        ("feat_numbb2", 2),
        ("all", 5),
    ):
        path = put(tmp_path / folder, {b"a.npz": msgpack_bytes(a), b"__keys__": b'["a.npz"]'})
        assert len(opened(path).picture(0).boxes) == count, folder
    (tmp_path / "nbb_th0.2_max100_min1.json").write_text('{"a.npz": 1}')
    assert len(UniterLmdb(tmp_path / "feat_th0.2_max100_min1").picture(0).boxes) == 1
    (tmp_path / "nbb_th0.2_max100_min1.json").write_text('{"a.npz": 6}')
    with pytest.raises(BadInput, match=r"a\.npz: 5 regions, its number of boxes is said to be 6"):
        UniterLmdb(tmp_path / "feat_th0.2_max100_min1").picture(0)


def test_line_index_of_another_file_is_not_believed(tmp_path: Path) -> None:
    path = butd(tmp_path)
    assert opened(path).names == NAMES
    kept = path.with_suffix(".lineidx").read_text().split()
    lines = path.read_bytes().splitlines(keepends=True)
    assert [int(x) for x in kept] == [0, len(lines[0]), len(lines[0] + lines[1])]
    path.write_bytes(b"".join(reversed(lines)))
    assert opened(path).names == NAMES[::-1]
    path.with_suffix(".lineidx").write_text(f"0\n{len(lines[2] + lines[1])}\n")  # leaves out a line
    with pytest.raises(BadInput, match="holds several lines"):
        opened(path).picture(0)


def test_oscar_float16_and_odd_widths(tmp_path: Path) -> None:
    oscar(tmp_path)
    table = np.full((2, F + 6), 0.5)
    table[:, -6:-4] = 0
    file = tmp_path / "h.feature.tsv"
    for dtype in ("<f2", "<f4"):
        file.write_text("9\t" + json.dumps({"num_boxes": 2, "features": b64(table, dtype)}) + "\n")
        assert opened(file).picture(0).features.tolist() == [[0.5] * F] * 2
    file.write_text("9\t" + json.dumps({"num_boxes": 3, "features": b64(table)}) + "\n")
    with pytest.raises(BadInput, match=r"picture 9: 112 bytes of features for 3 boxes; expected 14 numbers a box"):
        opened(file).picture(0)


def test_one_clear_line_for_a_bad_sample(tmp_path: Path) -> None:
    path = butd(tmp_path)
    cells = [x.split("\t") for x in path.read_text().splitlines()]
    cells[1][4] = b64([[5, 5, 5, 9]] * 4)
    cells[2][5] = cells[2][5][:40]
    path.write_text("".join("\t".join(x) + "\n" for x in cells))
    found = check(str(path), on_error="skip")
    assert (found.samples, found.usable) == (3, 1)
    assert found.problems[0] == f"{path}, picture {NAMES[1]}: box 0 [5, 5, 5, 9] has no area (x2 <= x1 or y2 <= y1)"
    assert found.problems[1].startswith(f"{path}, picture {NAMES[2]}: features: ")


def test_conversion_asks_for_what_it_needs(tmp_path: Path) -> None:
    path = uniter_msgpack(tmp_path)
    with pytest.raises(BadInput, match="does not say what made its features"):
        convert(path, tmp_path / "o", "shards", pairs=str(pairs(tmp_path)))
    with pytest.raises(BadInput, match="its size is not known"):
        convert(path, tmp_path / "o.tsv", "butd")
    with pytest.raises(BadInput, match="no captions; give --pairs"):
        convert(path, tmp_path / "o", "shards", extractor="butd")
    (tmp_path / "sizes.json").write_text(json.dumps({n: [W, H] for n in NAMES}))
    assert convert(path, tmp_path / "p.tsv", "butd", sizes=tmp_path / "sizes.json").written == 3
    expect(replace(opened(tmp_path / "p.tsv").picture(2)), 2, set())


def test_convert_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(butd(tmp_path))
    data(["convert", source, str(tmp_path / "v"), "--layout", "vilbert"])
    assert "3 pictures written, 0 were there, 0 left out" in capsys.readouterr().out
    expect(opened(tmp_path / "v").picture(0), 0, set())
    with pytest.raises(BadInput, match="does not say what made its features"):
        data(["convert", source, str(tmp_path / "s"), "--pairs", str(pairs(tmp_path))])
    assert not (tmp_path / "s").exists()


def test_names_of_one_picture() -> None:
    same = [
        "COCO_val2014_000000000042.jpg",
        "coco_val2014_000000000042.npz",
        "42",
        "images/42.png",
        "000000000042.jpg.npz",
    ]
    assert {picture_key(x) for x in same} == {"42"}
    assert picture_key("nlvr2_dev-850-0-img0.npz") == "nlvr2_dev-850-0-img0"
