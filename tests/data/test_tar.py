from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_makers import jpeg, picture, same_picture, same_sample

from intarsia.data.decode import decode_image, image_size
from intarsia.data.formats import tar as tars
from intarsia.data.formats.regions import encode_regions
from intarsia.data.formats.tar import TarSource, split_name, write_tar
from intarsia.errors import BadInput


def pack(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def image_to_dataset(path: Path, count: int, first: int = 0) -> Path:
    members: list[tuple[str, bytes]] = []
    for number in range(first, first + count):
        key = f"{number:09d}"
        said = {"url": "u", "caption": f"dog {number}", "key": key, "status": "success", "error_message": None}
        said |= {"width": 40, "height": 30, "original_width": 400, "exif": "{}", "sha256": "0"}
        members += [(f"{key}.jpg", jpeg(number)), (f"{key}.json", json.dumps(said).encode())]
        members += [(f"{key}.txt", f"dog {number}".encode())]
    return pack(path, *members)


def header(name: str, size: int) -> bytes:
    """A ustar header, field by field."""
    fields = (name.encode().ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, b"%011o\0" % size, b"00000000000\0")
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(32 + 32 + 8 + 8 + 155 + 12)
    total = sum(b"".join(fields)) + 8 * 32 + sum(rest)
    return b"".join(fields) + b"%06o\0 " % total + rest


def test_img2dataset_bytes_and_status(tmp_path: Path) -> None:
    """Shard, failed sample, statistics and table as img2dataset leaves them; the tar made byte by byte."""
    said = {"url": "http://x/1", "caption": "a dog", "key": "000000001", "status": "success", "error_message": None}
    said |= {"width": 40, "height": 30, "original_width": 400, "original_height": 300, "exif": "{}", "md5": "0"}
    failed = said | {"key": "000000002", "status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    failed |= {"width": None, "height": None}
    members = [("000000001.jpg", jpeg(1)), ("000000001.json", json.dumps(said).encode()), ("000000001.txt", b"a dog")]
    members += [("000000002.json", json.dumps(failed).encode()), ("000000002.txt", b"a cat")]
    blocks = (header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in members)
    (tmp_path / "00000.tar").write_bytes(b"".join(blocks) + bytes(10240))
    (tmp_path / "00000_stats.json").write_text('{"count": 2, "successes": 1, "failed_to_download": 1}')
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    message = r"00000\.tar, sample 000000002: img2dataset could not fetch it: failed_to_download: HTTP Error 404"
    with pytest.raises(BadInput, match=message):
        TarSource(tmp_path)
    source = TarSource(tmp_path, on_error="skip")
    assert (len(source), source[0].texts, source[0].key) == (1, ("a dog",), "000000001#0")
    assert (source[0].pictures[0].width, source[0].pictures[0].height) == (40, 30)
    assert len(source.skipped) == 1 and "404" in source.skipped[0]
    np.testing.assert_array_equal(decode_image(source[0].pictures[0].path), decode_image(jpeg(1)))
    assert source.index.ignored == dict.fromkeys(
        ("url", "status", "original_width", "original_height", "exif", "md5"), 1
    )


keys = st.text(st.sampled_from("abcß字_-0"), min_size=1, max_size=5).filter(lambda x: not x.startswith("__"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        keys, st.tuples(st.lists(st.sampled_from(["a dog", "zwölf", "狗"]), min_size=1, max_size=3), st.integers(1, 3))
    ).filter(bool),
    st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, given_samples: dict[str, tuple[list[str], int]], features: bool
) -> None:
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    samples = []
    for key, (captions, images) in given_samples.items():
        regions = [picture(i) for i in range(images)] if features else []
        samples.append((f"part/{key}", {"captions": captions}, [("jpg", jpeg(i)) for i in range(images)], regions))
    assert write_tar(path, samples) == len(samples)
    first = path.read_bytes()
    write_tar(path, samples)
    assert path.read_bytes() == first
    source = TarSource(path)
    place = 0
    for key, fields, images, regions in samples:
        for number, caption in enumerate(fields["captions"]):
            sample = source[place]
            assert (sample.key, sample.texts) == (f"{key}#{number}", (caption,))
            names = [f"{key}.{i}.jpg" for i in range(len(images))] if len(images) > 1 else [f"{key}.jpg"]
            assert [x.name for x in sample.pictures] == names
            for found, (_, data) in zip(sample.pictures, images, strict=True):
                np.testing.assert_array_equal(decode_image(found.path), decode_image(data))
            for found, made, name in zip(sample.pictures, regions, names, strict=False):
                same_picture(found, picture_named(made, name), boxes=1e-6)
            place += 1
    assert place == len(source)


def picture_named(made: Any, name: str) -> Any:
    import dataclasses

    return dataclasses.replace(made, name=name)


def test_tars_of_img2dataset(tmp_path: Path) -> None:
    image_to_dataset(tmp_path / "00000.tar", 3)
    image_to_dataset(tmp_path / "00001.tar", 2, first=3)
    source = TarSource(tmp_path)
    assert [source[i].texts[0] for i in range(len(source))] == [f"dog {i}" for i in range(5)]
    found = source[4].pictures[0]
    assert (found.name, found.width, found.height) == ("000000004.jpg", 40, 30)
    assert image_size(found.path) == (40, 30)
    np.testing.assert_array_equal(decode_image(found.path), decode_image(jpeg(4)))
    assert source.index.ignored["url"] == 5
    assert source.picture_count == 5
    same_sample(pickle.loads(pickle.dumps(source))[3], source[3])
    assert next(iter(source.records())) == {
        "key": "000000000",
        "caption": "dog 0",
        "width": 40,
        "height": 30,
        "image": "000000000.jpg",
    } | {name: "" for name in ()} | {
        x: y for x, y in {"url": "u", "status": "success", "original_width": 400, "exif": "{}", "sha256": "0"}.items()
    }


def test_the_text_alone_is_enough_and_boxes_come_from_the_json(tmp_path: Path) -> None:
    said = json.dumps({"boxes": [[0, 0, 20, 15]], "links": [[0, 2, 5, 0]]}).encode()
    pack(tmp_path / "x.tar", ("d/a.b.jpg", jpeg(1)), ("d/a.txt", b"a dog\n"), ("d/a.json", said), ("d/a.cls", b"3"))
    source = TarSource(tmp_path / "x.tar")
    sample = source[0]
    assert (sample.key, sample.texts, sample.pictures[0].name) == ("d/a#0", ("a dog",), "d/a.b.jpg")
    np.testing.assert_allclose(sample.pictures[0].boxes, [[0, 0, 0.5, 0.5]])
    assert source.index.ignored == {".cls": 1}
    assert ".cls" not in next(iter(source.records()))


def test_ten_pictures_keep_their_order(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("k", {"caption": "many"}, [("jpg", jpeg(i)) for i in range(11)], [])])
    assert [x.name for x in TarSource(tmp_path / "x.tar")[0].pictures] == [f"k.{i}.jpg" for i in range(11)]


def test_the_index_is_kept_and_made_anew_when_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    walk = tars.walk_tar
    monkeypatch.setattr(tars, "walk_tar", lambda path: walks.append(path.name) or walk(path))
    path = image_to_dataset(tmp_path / "00000.tar", 2)
    assert len(TarSource(path)) == len(TarSource(path)) == 2
    assert walks == ["00000.tar"]
    assert (tmp_path / "00000.tar.index.npz").exists()
    image_to_dataset(path, 3)
    assert len(TarSource(path)) == 3
    (tmp_path / "00000.tar.index.npz").write_bytes(b"broken")
    assert len(TarSource(path)) == 3
    assert walks == ["00000.tar"] * 3


def test_an_index_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image_to_dataset(tmp_path / "00000.tar", 2)

    def refuse(*_: Any) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr("intarsia.data.formats.tar.write_whole", refuse)
    assert len(TarSource(path)) == 2
    assert [x.name for x in tmp_path.iterdir()] == ["00000.tar"]


GOOD = ("good.jpg", jpeg(1)), ("good.txt", b"a dog")
BAD: list[tuple[Sequence[tuple[str, bytes]], str]] = [
    ((("bad.jpg", jpeg(1)), ("bad.txt", b" ")), "sample bad: caption 0 is empty"),
    ((("bad.jpg", jpeg(1)),), "sample bad: no caption and no question"),
    ((("bad.txt", b"a dog"),), "sample bad: no picture among its members (txt)"),
    (
        (("bad.jpg", jpeg(1)), ("bad.json", b"{")),
        "sample bad: not JSON: Expecting property name enclosed in double quotes at character 2",
    ),
    ((("bad.jpg", jpeg(1)), ("bad.txt", b"\xff")), "sample bad: its .txt is not UTF-8 at byte 1"),
    (
        (("bad.0.jpg", jpeg(1)), ("bad.1.jpg", jpeg(2)), ("bad.txt", b"x"), ("bad.regions.npz", b"")),
        "sample bad: 1 region files for 2 pictures",
    ),
]


@pytest.mark.parametrize(("members", "message"), BAD, ids=[x[1][12:40] for x in BAD])
def test_a_bad_sample_is_named_or_left_out(tmp_path: Path, members: Sequence[tuple[str, bytes]], message: str) -> None:
    path = pack(tmp_path / "x.tar", *GOOD, *members)
    with pytest.raises(BadInput) as stopped:
        TarSource(path)
    assert str(stopped.value) == f"{path}, {message}"
    rest = TarSource(path, on_error="skip")
    assert (len(rest), rest.skipped) == (1, (f"{path}, {message}",))


def test_bad_tars(tmp_path: Path) -> None:
    path = image_to_dataset(tmp_path / "x.tar", 2)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1]
    for size in (second.offset, second.offset + 100, second.offset_data + 3, whole.rindex(b"dog 1") + 507):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"x\.tar: (cut short|not a whole, uncompressed tar: unexpected end)"):
            TarSource(path)
        assert "x.tar" in TarSource(path, on_error="skip").skipped[0]
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(BadInput, match=r"x\.tar: not a whole, uncompressed tar"):
        TarSource(path)
    pack(path, *GOOD, ("b.jpg", jpeg(2)), ("good.json", b"{}"))
    with pytest.raises(BadInput, match=r"key 'good' comes back at good\.json; members of a sample must lie together"):
        TarSource(path)
    with pytest.raises(BadInput, match=r"none\.tar: no such file"):
        TarSource(tmp_path / "none.tar")
    pack(tmp_path / "two" / "a.tar", *GOOD)
    pack(tmp_path / "two" / "b.tar", *GOOD)
    with pytest.raises(BadInput, match=r"b\.tar, sample good: key 'good' was already given by .*a\.tar, sample good"):
        TarSource(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: no \.tar file"):
        TarSource(tmp_path / "empty")


def test_broken_regions_name_the_member(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", *GOOD, ("good.regions.npz", encode_regions(picture(1), "npz")[:50]))
    with pytest.raises(BadInput, match=r"x\.tar, sample good: good\.regions\.npz: not a readable \.npz file"):
        TarSource(path)[0]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (("a.b", {"caption": "x"}, [("jpg", b"")], []), "sample a.b: a key is not empty and has no dot"),
        (("a", {"caption": ""}, [("jpg", b"")], []), "sample a: caption 0 is empty"),
        (("a", {"caption": "x"}, [("tiff", b"")], []), r"sample a: its pictures are \['tiff'\], expected one or more"),
        (("a", {"caption": "x"}, [], []), r"sample a: its pictures are \[\]"),
        (("a", {"caption": "x"}, [("jpg", b"")] * 2, [picture(1)]), "sample a: 1 region files for 2 pictures"),
    ],
)
def test_nothing_is_left_of_a_bad_tar(tmp_path: Path, sample: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        write_tar(tmp_path / "x.tar", [sample])
    with pytest.raises(BadInput, match="sample a: its key was already given"):
        write_tar(tmp_path / "x.tar", [("a", {"caption": "x"}, [("jpg", b"")], [])] * 2)
    assert list(tmp_path.iterdir()) == []


def test_names() -> None:
    assert split_name("a/b.c/d.0.JPG") == ("a/b.c/d", "0.jpg")
    assert split_name("noext") == ("noext", "")
