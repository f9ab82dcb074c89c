"""Other projects' files and films on another machine: every layout reads there as it does here; sums are compared; errors name the address."""

from __future__ import annotations

import hashlib
import json
import pickle
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from more_makers import MORE
from pair_makers import jpeg, same_picture, same_sample
from store_makers import MAKERS, F, butd, lxmert
from test_boxes_given import CASES as BOXED
from test_boxes_given import RELATED, SIZES
from test_corpus import CASES as CORPORA
from test_more_features import corpus
from test_questions import CASES as ASKED
from test_questions import OSCAR
from test_tfrecord import b2t2
from test_uniter_text import itm
from test_uniter_text import vocab as pieces

from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats import copies
from intarsia.data.formats.copies import SUMS
from intarsia.data.formats.films import FilmRecord, FilmSource, FilmWriter, Track
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.stored import open_pictures
from intarsia.data.opening import open_source
from intarsia.data.source import Provenance
from intarsia.data.stores import open_store
from intarsia.data.subtitles import Sentence
from intarsia.errors import BadInput

FRESH = count()
MEMORY = fsspec.filesystem("memory")
EVERY = MAKERS | MORE
BY_NAME_ALONE = {"vl_bert-folder"}
"""Folders of plain .json files: not looked into from afar."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    copies._sums.cache_clear()
    return tmp_path / "cache/remote"


def upload(root: Path) -> str:
    where = f"memory://mirror{next(FRESH)}"
    for file in root.rglob("*"):
        if file.is_file():
            MEMORY.pipe_file(f"{where}/{file.relative_to(root).as_posix()}", file.read_bytes())
    return where


def there(root: Path, path: Path) -> str:
    """The address of what lies at a path below the root, uploaded."""
    inside = path.relative_to(root).as_posix()
    return upload(root) + ("" if inside == "." else f"/{inside}")


@pytest.mark.parametrize("name", sorted(EVERY.keys() - BY_NAME_ALONE))
def test_every_layout_of_features_reads_from_afar(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = EVERY[name][0](tmp_path / "data")
    address = there(tmp_path / "data", path)
    here, remote = open_store(path, width=F), pickle.loads(pickle.dumps(open_store(address, width=F)))
    assert here is not None and type(remote) is type(here) and list(remote.names) == list(here.names)
    for number in range(len(here)):
        same_picture(remote.picture(number), here.picture(number))
        assert remote.said(number) == here.said(number) and remote.tags(number) == here.tags(number)
        assert remote.where(number).startswith(address)


def test_features_from_afar_are_inspected_checked_and_converted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = butd(tmp_path / "data")
    address = there(tmp_path / "data", path)
    assert inspect(address, width=F).pictures == check(address, width=F).usable == 3
    said = tmp_path / "pairs.jsonl"
    said.write_text("\n".join(json.dumps({"image": x, "caption": "a dog", "key": x}) for x in ("42.jpg", "73.jpg")))
    captions = tmp_path / "annot.json"
    captions.write_text(json.dumps([["42.jpg", "a dog"], ["73.jpg", "two"]]))
    MEMORY.pipe_file(f"{address}.annot.json", captions.read_bytes())
    done = convert(address, tmp_path / "out", "shards", extractor="butd", pairs=f"{address}.annot.json", width=F)
    assert (done.written, done.lines) == (3, 2) and len(ShardSource(tmp_path / "out")) == 2
    again = upload(tmp_path / "out")
    assert convert(again, tmp_path / "back.tsv", "butd").written == 3


def test_copies_of_features_are_compared_and_made_anew(cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    path = lxmert(root)
    total = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / SUMS).write_text(f"{total}  {path.name}\n")
    address = there(root, path)
    assert len(open_store(address) or ()) == 3
    assert sorted(x.name for x in cache.glob("named/*/*/*")) == [f"{path.stem}.lineidx", path.name]
    MEMORY.pipe_file(address, path.read_bytes().replace(b"\t60\t", b"\t61\t"))
    copies._sums.cache_clear()
    for copy in (cache / "kept").glob(total):
        copy.unlink()
    with pytest.raises(BadInput, match=rf"^{address}: its bytes have changed: sha256"):
        open_store(address)
    MEMORY.rm(f"{address.rpartition('/')[0]}/{SUMS}")
    copies._sums.cache_clear()
    store = open_store(address)
    assert store is not None and store.picture(0).width == 61
    MEMORY.pipe_file(address, path.read_bytes() + b"half a line\t1\t2\n")
    store = open_store(address)
    assert store is not None and len(store) == 4
    with pytest.raises(BadInput, match=rf"^{address}"):
        store.picture(3)
    assert open_store(f"{address}.none") is None


def questions(root: Path) -> Path:
    (root / "trainval_ans2label.json").write_text(json.dumps({"yes": 0, "no": 1}))
    (root / "train2014_qla_mrcnn.json").write_text(json.dumps(OSCAR))
    return root / "train2014_qla_mrcnn.json"


def relations(root: Path) -> Path:
    (root / "image_data.json").write_text(json.dumps(SIZES))
    (root / "relationships.json").write_text(json.dumps(RELATED))
    return root / "relationships.json"


def uniter(root: Path) -> Path:
    pieces(root)
    return itm(root)


def fashion(root: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    path = root / "fashiongen_256_256_train.h5"
    with h5py.File(path, "w") as file:
        file["input_image"] = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
        for name in ("description", "category", "subcategory", "productID"):
            file[f"input_{name}"] = np.array([[f"{name} {i}".encode()] for i in range(2)])
    return path


def records(root: Path) -> Path:
    b2t2(root)
    return root


def films(root: Path) -> Path:
    writer = FilmWriter(root / "films", Provenance("s3d", 4, settings={"fps": "20", "frames": "30"}), films_per_shard=2)
    for i in range(3):
        rng = np.random.default_rng(i)
        said = (Track("en", (Sentence("a pan heats", 0.0, 4.0), Sentence("add the oil", 4.0, 8.0))),)
        writer.add(FilmRecord(f"{i}.mp4", 9.0, rng.random((6, 4)), np.arange(6) * 1.5, said))
    writer.finish()
    return root / "films"


@pytest.mark.parametrize("make", [questions, relations, uniter, fashion, records, films])
def test_data_sets_of_others_and_films_from_afar(make: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = make(tmp_path / "data")
    address = there(tmp_path / "data", path)
    here, remote = open_source(path), pickle.loads(pickle.dumps(open_source(address)))
    assert type(here) is type(remote) and len(here) == len(remote) > 0
    for number in range(len(here)):
        same_sample(remote[number], here[number])
    assert check(address).usable == check(str(path)).usable == len(here)
    assert inspect(address).samples == len(here)


FILES = {f"corpus {x}": y[:2] for x, y in CORPORA.items()} | {f"questions {x}": y[:2] for x, y in ASKED.items()}
FILES |= {f"boxes {x}": (x, y[0]) for x, y in BOXED.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_captions_questions_and_boxes_reads_from_afar(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    about = {"trainval_ans2label.json": {"yes": 0, "no": 1}, FILES[name][0]: FILES[name][1]}
    about |= {"image_data.json": SIZES} if name.startswith("boxes") else {}
    for file, content in about.items():
        (tmp_path / "data" / file).write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
    path = tmp_path / "data" / FILES[name][0]
    here, remote = open_source(path), open_source(there(tmp_path / "data", path))
    assert type(here) is type(remote) and len(here) == len(remote) > 0
    for number in range(len(here)):
        same_sample(remote[number], here[number])


def test_the_corpus_of_oscar_plus_brings_the_folders_it_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = corpus(tmp_path / "data")
    (tmp_path / "data/other").mkdir()
    (tmp_path / "data/other/large.tsv").write_text("x")
    address = there(tmp_path / "data", path)
    here, remote = open_store(path, width=F), open_store(address, width=F)
    assert here is not None and remote is not None and list(here.names) == list(remote.names)
    for number in range(len(here)):
        same_picture(remote.picture(number), here.picture(number))
    assert not list((tmp_path / "cache").rglob("large.tsv"))


def test_pictures_are_found_beside_remote_boxes(tmp_path: Path) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/7.jpg").write_bytes(jpeg(0, 40, 30))
    address = there(tmp_path / "data", relations(tmp_path / "data"))
    assert open_source(address)[0].pictures[0].path == f"{address.rpartition('/')[0]}/images/7.jpg"
    MEMORY.pipe_file(address, b'[{"image_id": 7, "relationships": [{"predicate": "on"}]}]')
    with pytest.raises(BadInput, match=rf"^{address}: not a whole file of Visual Genome relationships"):
        open_source(address)


def test_shards_of_films_are_fetched_when_needed_and_compared(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    address = there(tmp_path / "data", films(tmp_path / "data"))
    source = open_source(address)
    assert isinstance(source, FilmSource) and [x.sums for x in (check(address),)] == [2]
    assert len(open_pictures(address)) == 3
    data = bytearray(MEMORY.cat_file(f"{address}/shard-00001.safetensors"))
    data[-1] ^= 1
    MEMORY.pipe_file(f"{address}/shard-00001.safetensors", bytes(data))
    for copy in (cache / "passing").iterdir():
        copy.unlink()
    with pytest.raises(BadInput, match=rf"^{address}/shard-00001\.safetensors: its bytes have changed: sha256"):
        open_source(address)
