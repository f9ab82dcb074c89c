"""Remote data sets by fsspec: copies are checked, kept and thrown away; sums are compared; errors name the address."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections import namedtuple
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pair_makers import MADE, jpeg, line, picture, same_picture, same_sample

from intarsia.data import decode
from intarsia.data.check import check, inspect
from intarsia.data.decode import decode_image
from intarsia.data.formats import columns, copies, files, shard_files, shards
from intarsia.data.formats import tar as tars
from intarsia.data.formats.copies import SUMS, at_hand
from intarsia.data.formats.files import join, parent_of
from intarsia.data.formats.pairs import PairsFolder
from intarsia.data.formats.shards import ShardSource, ShardWriter
from intarsia.data.formats.stored import open_pictures
from intarsia.data.formats.tar import write_tar
from intarsia.data.opening import open_source, open_texts
from intarsia.errors import BadInput
from intarsia.extract import extract
from intarsia.features import open_extractor

FRESH = count()
MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    copies._sums.cache_clear()
    return tmp_path / "cache/remote"


def upload(root: Path, kind: str = "memory") -> str:
    if kind == "file":
        return f"file://{root}"
    where = f"memory://remote{next(FRESH)}/{root.name}"
    for file in root.rglob("*"):
        if file.is_file():
            MEMORY.pipe_file(f"{where}/{file.relative_to(root).as_posix()}", file.read_bytes())
    return where


def folder(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for name in "abc":
        (root / f"images/{name}.jpg").write_bytes(jpeg(ord(name)))
    lines = [line(image=f"images/{name}.jpg", key=name, boxes=[[1, 2, 30, 20]]) for name in "abc"]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def sharded(root: Path, images: str = "", count: int = 6) -> Path:
    writer = ShardWriter(root, MADE, images, pictures_per_shard=2)
    for number in range(count):
        writer.add(picture(number))
    writer.finish(line(image=f"images/{i}.jpg") for i in range(count))
    return root


def sums(root: Path) -> None:
    files = sorted(x for x in root.rglob("*") if x.is_file())
    text = "".join(f"{hashlib.sha256(x.read_bytes()).hexdigest()}  {x.relative_to(root).as_posix()}\n" for x in files)
    (root / SUMS).write_text(text)


def all_alike(here: Any, there: Any) -> None:
    assert type(here) is type(there)
    assert len(here) == len(there) > 0
    for i in range(len(here)):
        same_sample(here[i], there[i])


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_remote_folders_and_files_are_what_local_ones_are(kind: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "pairs")
    where = upload(root, kind)
    for name in ("", "/pairs.jsonl"):
        all_alike(open_source(f"{root}{name}"), open_source(where + name))
    assert check(where).decoded == 3
    assert inspect(where).with_pixels == 3
    root = sharded(tmp_path / "shards")
    where = upload(root, kind)
    all_alike(open_source(root), open_source(where))
    all_alike(open_pictures(root), open_pictures(where))
    assert (check(where).usable, check(where).sums) == (6, 3)
    assert inspect(where).provenance == MADE
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/cc12m.tsv").write_text("http://x.test/1.jpg\ta dog\nhttp://x.test/2.jpg\ta cat\n")
    where = upload(tmp_path / "texts", kind)
    all_alike(open_source(tmp_path / "texts/cc12m.tsv"), open_source(f"{where}/cc12m.tsv"))
    assert open_texts(f"{where}/cc12m.tsv")[1].texts == ("http://x.test/2.jpg a cat",)


def test_pictures_beside_remote_captions_and_shards_are_found(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos")
    (root / "annot.json").write_text(json.dumps([["a.jpg", "a dog"], ["z.jpg", "a cat"]]))
    where = upload(root)
    source = open_source(f"{where}/annot.json")
    assert [x.pictures[0].path for x in (source[0], source[1])] == [f"{where}/images/a.jpg", ""]
    assert check(f"{where}/annot.json").decoded == 1
    extract(where, tmp_path / "out", open_extractor("pixels"), show=False)
    extract(root, tmp_path / "here", open_extractor("pixels"), show=False)
    made, expected = ShardSource(tmp_path / "out"), ShardSource(tmp_path / "here")
    for number in range(3):
        same_picture(made.picture(number), expected.picture(number))
        assert made.picture(number).path == f"{where}/images/{'abc'[number]}.jpg"
    assert check(str(tmp_path / "out")).decoded == 3
    MEMORY.rm(f"{where}/pairs.jsonl")
    assert extract(where, tmp_path / "bare", open_extractor("pixels"), show=False).pictures == 3
    assert open_pictures(tmp_path / "bare")[2].pictures[0].path == f"{where}/images/c.jpg"


def test_a_shard_is_fetched_when_it_is_needed_and_its_bytes_are_compared(cache: Path, tmp_path: Path) -> None:
    where = upload(sharded(tmp_path / "shards"))
    source = ShardSource(where)
    assert list((cache / "passing").glob("[!.]*")) == [] if (cache / "passing").exists() else True
    source[2]
    assert len(list((cache / "passing").glob("[!.]*"))) == 1
    data = bytearray(MEMORY.cat_file(f"{where}/shard-00002.safetensors"))
    data[-1] ^= 1
    MEMORY.pipe_file(f"{where}/shard-00002.safetensors", bytes(data))
    with pytest.raises(
        BadInput, match=r"^memory://remote\d+/shards/shard-00002\.safetensors: its bytes have changed: sha256"
    ):
        source[4]
    assert len(list((cache / "passing").glob("[!.]*"))) == 1
    found = check(where, on_error="skip")
    assert found.usable == 4
    assert "shard-00002.safetensors: its bytes have changed" in found.problems[0]
    MEMORY.rm(f"{where}/shard-00001.safetensors")
    shutil.rmtree(cache)
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors: cannot be fetched: no such file"):
        ShardSource(where)[2]
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors: its bytes have changed: sha256 absent"):
        check(where)


def test_what_was_fetched_is_not_fetched_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = upload(folder(tmp_path / "pairs"))
    calls: list[str] = []
    real = copies._fetch
    monkeypatch.setattr(copies, "_fetch", lambda *args: (calls.append(args[0]), real(*args))[1])
    assert len(PairsFolder(where)) == len(PairsFolder(where)) == 3
    assert calls == [f"{where}/pairs.jsonl"]
    MEMORY.pipe_file(f"{where}/pairs.jsonl", json.dumps(line(image="images/a.jpg")).encode())
    assert len(PairsFolder(where)) == 1
    assert len(calls) == 2


def test_what_passes_through_makes_room(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that holds two shards at a time is enough for all, and what is mapped stays as it was."""
    root = sharded(tmp_path / "shards", count=20)
    where = upload(root)
    size = max(x.stat().st_size for x in root.glob("*.safetensors"))
    usage = namedtuple("usage", "total used free")

    def disk(folder: Any) -> Any:
        used = sum(x.stat().st_size for x in Path(folder).iterdir())
        return usage(0, used, int(2.5 * size) - used)

    monkeypatch.setattr(copies.shutil, "disk_usage", disk)
    monkeypatch.setattr(shards, "MAPPED", 3)
    source, expected = ShardSource(where), ShardSource(root)
    first = source[0]
    for i in [*range(20), *range(19, -1, -3)]:
        same_sample(source[i], expected[i])
        assert len(list((cache / "passing").glob("[!.]*"))) <= 2
        assert sum(x is not None for x in source._mapped) <= 3
    same_sample(first, expected[0])
    real, gone = shard_files.map_arrays, list[Path]()

    def snatched(file: Path) -> Any:
        if len(gone) < 3:
            gone.append(file)
            file.unlink()  # as another process would that needs room
        return real(file)

    monkeypatch.setattr(shard_files, "map_arrays", snatched)
    again = ShardSource(where)
    same_sample(again[7], expected[7])
    assert len(set(gone)) == 1 and len(gone) == 3
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda folder: usage(0, 0, 0))
    for i in range(20):  # no room at all: what comes is used and goes with the next
        same_sample(source[i], expected[i])


def test_stated_sums_are_compared(cache: Path, tmp_path: Path) -> None:
    """SHA256SUMS as `sha256sum` writes it, local and remote; for copies when they come, for all by `check`."""
    root = folder(tmp_path / "pairs")
    sums(root)
    where = upload(root)
    for spec in (str(root), where):
        found = check(spec)
        assert (found.sums, found.problems) == (4, ())
        assert "4 checksums right" in found.lines()[1]
    assert check(f"{root}/pairs.jsonl").sums == check(f"{where}/pairs.jsonl").sums == 1
    (root / "images/b.jpg").write_bytes(jpeg(1))
    MEMORY.pipe_file(f"{where}/images/b.jpg", jpeg(1))
    for spec in (str(root), where):
        with pytest.raises(
            BadInput, match=rf"{spec}/images/b\.jpg: its bytes have changed: sha256 \w+\.\., SHA256SUMS says"
        ):
            check(spec)
        found = check(spec, on_error="skip")
        assert (found.sums, len(found.problems), found.usable) == (3, 1, 3)
    MEMORY.pipe_file(f"{where}/pairs.jsonl", json.dumps(line(image="images/a.jpg")).encode())
    assert len(open_source(where)) == 3  # the copy has the bytes of the sum
    shutil.rmtree(cache)
    with pytest.raises(BadInput, match=r"pairs\.jsonl: its bytes have changed: sha256 .* is expected"):
        open_source(where)
    (root / SUMS).write_text("not a sum\n")
    with pytest.raises(BadInput, match=r"SHA256SUMS, line 1: 'not a sum' is not a sha256 and a name"):
        check(str(root))


def test_sums_of_tars_and_of_several_data_sets(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for part in range(2):
        write_tar(tmp_path / f"tars/{part}.tar", [(f"k{part}", {"caption": "x"}, [("jpg", jpeg(part))], [])])
    sums(tmp_path / "tars")
    both = f"{upload(tmp_path / 'tars')},{upload(folder(tmp_path / 'pairs'))}"
    found = check(both)
    assert (found.samples, found.usable, found.pictures, found.sums, found.unsummed) == (5, 5, 5, 2, 4)
    assert "2 checksums right, 4 files without one" in found.lines()[1]
    with open(tmp_path / "tars/1.tar", "ab") as handle:
        handle.write(bytes(512))
    with pytest.raises(BadInput, match=r"1\.tar: its bytes have changed"):
        check(upload(tmp_path / "tars"))


def test_a_remote_tar_is_compared_as_it_passes(cache: Path, tmp_path: Path) -> None:
    """Bytes that no reader asks for, in a picture, count too."""
    samples = [(f"k{i}", {"caption": f"dog {i}"}, [("jpg", jpeg(i))], []) for i in range(5)]
    write_tar(tmp_path / "tars/0.tar", samples)
    sums(tmp_path / "tars")
    where = upload(tmp_path / "tars")
    assert len(open_source(where)) == 5
    data = bytearray((tmp_path / "tars/0.tar").read_bytes())
    data[data.index(jpeg(3)) + 200] ^= 1
    for changed in (data, data[:-512], bytes(data) + bytes(512)):
        MEMORY.pipe_file(f"{where}/0.tar", bytes(changed))
        with pytest.raises(
            BadInput, match=r"^memory:/+remote\d+/tars/0\.tar: its bytes have changed: sha256 \w+\.\., SHA256SUMS says"
        ):
            open_source(where)
    MEMORY.rm(f"{where}/{SUMS}")
    copies._sums.cache_clear()
    assert len(open_source(where)) == 5
    assert (check(where).sums, check(where).unsummed) == (0, 1)


def test_a_remote_tar_is_read_through_once_and_then_only_for_pictures(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tars").mkdir()
    samples = [(f"k{i}", {"caption": f"dog {i}"}, [("jpg", jpeg(i))], []) for i in range(9)]
    write_tar(tmp_path / "tars/0.tar", samples)
    where = upload(tmp_path / "tars")
    walks, reads = list[str](), list[int]()
    walk, read = tars.walk_tar, files.read_remote
    monkeypatch.setattr(tars, "walk_tar", lambda path, texts: (walks.append(path), walk(path, texts))[1])
    for module in (files, decode):
        monkeypatch.setattr(module, "read_remote", lambda *args: (reads.append(args[2]), read(*args))[1])
    for _ in range(2):
        source = pickle.loads(pickle.dumps(open_source(where)))
        assert [source[i].texts[0] for i in range(9)] == [f"dog {i}" for i in range(9)]
    assert (len(walks), reads) == (1, [])
    np.testing.assert_array_equal(decode_image(source[4].pictures[0].path), decode_image(jpeg(4)))
    assert reads == [len(jpeg(4))]
    write_tar(tmp_path / "tars/0.tar", samples[:5])
    MEMORY.pipe_file(f"{where}/0.tar", (tmp_path / "tars/0.tar").read_bytes())
    assert len(open_source(where)) == 5
    next((cache / "kept").glob("*.texts")).write_bytes(b"")
    assert {open_source(where)[i].texts[0] for i in range(5)} == {f"dog {i}" for i in range(5)}


def test_copies_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"^memory://none/x\.tsv: cannot be fetched: no such file"):
        at_hand("memory://none/x.tsv")
    where = upload(folder(tmp_path / "pairs"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(MEMORY), "get_file", full)
        with pytest.raises(BadInput, match=r"pairs\.jsonl: .*kept has no room for its 2\d\d bytes"):
            at_hand(f"{where}/pairs.jsonl")
        patch.setattr(type(MEMORY), "get_file", lambda self, a, b: Path(b).write_bytes(b"half"))
        with pytest.raises(BadInput, match=r"pairs\.jsonl: 4 of 2\d\d bytes came"):
            at_hand(f"{where}/pairs.jsonl")
    assert not [x for x in (tmp_path / "cache/remote/kept").iterdir() if not x.name.endswith(".lock")]
    MEMORY.pipe_file(f"{where}/notes.txt", b"nothing\n")
    with pytest.raises(BadInput, match=r"notes\.txt: not a file of a known kind"):
        open_source(f"{where}/notes.txt")


def test_errors_of_any_kind_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(Exception):
        """As back ends have their own."""

    write_tar(tmp_path / "tars/0.tar", [("k", {"caption": "x"}, [("jpg", jpeg(0))], [])])
    where = upload(tmp_path / "tars")
    picture = open_source(where)[0].pictures[0].path

    def refuse(*_: Any, **__: Any) -> None:
        raise Forbidden("403, message='Forbidden'")

    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pytest.importorskip("pyarrow").table({"jpg": [jpeg(0)], "caption": ["x"]}), tmp_path / "t.parquet")
    MEMORY.pipe_file(f"{where}.parquet", (tmp_path / "t.parquet").read_bytes())
    table = open_source(f"{where}.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(columns.Columns, "read_group", refuse)
        columns._row_group.cache_clear()
        with pytest.raises(BadInput, match=r"tars\.parquet: cannot be read: 403"):
            decode_image(table[0].pictures[0].path)
    for name in ("open", "cat_file", "get_file", "find"):
        monkeypatch.setattr(type(MEMORY), name, refuse)
    shutil.rmtree(tmp_path / "cache")
    for act in (
        lambda: open_source(f"{where}/0.tar"),
        lambda: decode_image(picture),
        lambda: at_hand(f"{where}/0.tar"),
    ):
        with pytest.raises(
            BadInput, match=r"^memory:/+remote\d+/tars/0\.tar: cannot be \w+: 403, message='Forbidden'$"
        ):
            act()
    with pytest.raises(BadInput, match=r"tars: cannot be listed: 403"):
        open_source(where)


def test_paths_below_addresses() -> None:
    assert join("s3://a/b", "../c", "d.jpg") == "s3://a/c/d.jpg"
    assert join("s3://a/b", "https://x/y.jpg") == join(Path("b"), "https://x/y.jpg") == "https://x/y.jpg"
    assert join("b", "c") == Path("b/c")
    assert parent_of("s3://a/b/c.tsv") == "s3://a/b"


def test_a_line_is_a_few_numbers(tmp_path: Path) -> None:
    """What is held of a caption file does not grow with its texts."""
    sizes = []
    for words in (3, 60):
        (tmp_path / "cc12m.tsv").write_text(
            "".join(f"http://pictures.test/{i}.jpg\t{'word ' * words}{i}\n" for i in range(3000))
        )
        source = open_source(tmp_path / "cc12m.tsv")
        sizes.append(len(pickle.dumps(source)))
        assert source[2999].texts == (f"{'word ' * words}2999",)
    assert sizes[0] == sizes[1] < 3000 * 40
    assert np.array_equal(source.index.pictures, np.arange(3000))  # type: ignore[attr-defined]
