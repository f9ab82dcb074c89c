from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_makers import folder, jpeg, line, picture, same_picture, same_sample

from intarsia.batch import Link
from intarsia.data.formats.lines import parse_line
from intarsia.data.formats.pairs import PairsFolder, to_records, write_pairs
from intarsia.data.formats.regions import read_picture, to_fractions, write_regions
from intarsia.errors import BadInput

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    captions = draw(st.lists(st.tuples(texts, st.sampled_from(["en", "de", "zh"])), min_size=1, max_size=3))
    boxes = draw(
        st.lists(
            st.tuples(st.integers(0, 20), st.integers(0, 15), st.integers(1, 19), st.integers(1, 14)).map(
                lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
            ),
            max_size=3,
        )
    )
    text = draw(st.integers(0, len(captions) - 1))
    start = draw(st.integers(0, len(captions[text][0]) - 1))
    links = [[text, start, start + 1, draw(st.integers(0, len(boxes) - 1))]] if boxes else []
    return {
        "captions": [{"text": text, "language": language} for text, language in captions],
        "boxes": boxes,
        "labels": draw(st.lists(texts, min_size=len(boxes), max_size=len(boxes))),
        "links": links,
        "tags": draw(st.lists(texts, max_size=2)),
        "answers": draw(st.lists(st.tuples(texts, st.floats(0, 1)).map(list), max_size=2)),
        "false_captions": draw(st.lists(texts, max_size=2)),
        "split": draw(st.sampled_from(["train", "val", "test"])),
    }


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(records(), min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, given_records: list[dict[str, Any]]) -> None:
    root = folder(tmp_path_factory.mktemp("pairs"))
    written = [{"key": f"k{i}", "image": "images/a.jpg", **x} for i, x in enumerate(given_records)]
    assert write_pairs(root, written) == len(written)
    source = PairsFolder(root)
    read = [source[i] for i in range(len(source))]
    assert list(source.records()) == written
    place = 0
    for record in written:
        for number, caption in enumerate(record["captions"]):
            sample = read[place]
            assert sample.key == f"{record['key']}#{number}"
            assert (sample.texts, sample.language) == ((caption["text"],), caption["language"])
            assert sample.tags == tuple(record["tags"] or record["labels"])
            assert sample.false_texts == tuple(record["false_captions"])
            assert [list(x) for x in sample.answers] == record["answers"]
            assert sample.links == tuple(Link(s, e, box) for t, s, e, box in record["links"] if t == number)
            pixels = sample.pictures[0].boxes * [40, 30, 40, 30]
            np.testing.assert_allclose(pixels, np.array(record["boxes"]).reshape(-1, 4), atol=1e-5)
            place += 1
    assert place == len(read)
    for split in ("train", "val", "test"):
        part = PairsFolder(root, split)
        kept = [x for x, record in zip(read, _owners(written), strict=True) if record["split"] == split]
        assert len(part) == len(kept)
        for one, other in zip((part[i] for i in range(len(part))), kept, strict=True):
            same_sample(one, other)


def _owners(written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in written for _ in record["captions"]]


def test_samples_of_one_picture_share_its_name_and_pictures_come_once(tmp_path: Path) -> None:
    root = folder(tmp_path, line(captions=["a dog", "a cat"]), line(image="images/b.jpg"), line(caption="again"))
    source = PairsFolder(root)
    assert [x.pictures[0].name for x in map(source.__getitem__, range(4))] == ["images/a.jpg"] * 2 + [
        "images/b.jpg",
        "images/a.jpg",
    ]
    assert [source[i].key for i in range(4)] == ["1#0", "1#1", "2#0", "3#0"]
    found = list(source.pictures())
    assert [x.name for x in found] == ["images/a.jpg", "images/b.jpg"]
    assert [Path(x.path).read_bytes() for x in found] == [jpeg(ord("a")), jpeg(ord("b"))]
    assert found[0].features.shape == (0, 0)
    assert source[-1].key == "3#0"
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_region_files_there_and_back(tmp_path: Path, suffix: str) -> None:
    made = picture(7, name="images/a.jpg")
    root = folder(tmp_path, line(regions=f"a.{suffix}"))
    write_regions(root / f"a.{suffix}", made)
    found = PairsFolder(root)[0].pictures[0]
    same_picture(found, made, boxes=1e-6)
    assert found.path == str(root / "images/a.jpg")
    (root / "images/a.jpg").unlink()
    with pytest.raises(BadInput, match=r"line 1: width and height are not given and picture .*a\.jpg does not exist"):
        PairsFolder(root)[0]
    folder(tmp_path / "again", line(regions=f"a.{suffix}", width=40, height=30))
    write_regions(tmp_path / "again" / f"a.{suffix}", made)
    (tmp_path / "again/images/a.jpg").unlink()
    same_picture(PairsFolder(tmp_path / "again")[0].pictures[0], made, boxes=1e-6)


def test_two_pictures_with_links_into_the_second(tmp_path: Path) -> None:
    record = {
        "image": ["images/a.jpg", "images/b.jpg"],
        "caption": "both dogs",
        "boxes": [[[0, 0, 5, 5]], [[1, 1, 9, 9], [2, 2, 8, 8]]],
        "links": [[0, 5, 9, 1, 1]],
        "answers": [["true", 1]],
    }
    sample = PairsFolder(folder(tmp_path, record))[0]
    assert [x.name for x in sample.pictures] == ["images/a.jpg", "images/b.jpg"]
    assert [len(x.boxes) for x in sample.pictures] == [1, 2]
    assert sample.links == (Link(5, 9, 1, 0, 1),)
    assert sample.answers == (("true", 1.0),)


def test_the_answers_are_the_question_s(tmp_path: Path) -> None:
    source = PairsFolder(folder(tmp_path, line(question="what is it?", answers=[["dog", 1], ["cat", 0.3]])))
    assert [x.texts for x in map(source.__getitem__, range(2))] == [("a dog",), ("what is it?",)]
    assert [x.answers for x in map(source.__getitem__, range(2))] == [(), (("dog", 1.0), ("cat", 0.3))]


def test_blank_lines_bom_and_windows_ends(tmp_path: Path) -> None:
    root = folder(tmp_path)
    raw = [json.dumps(line(caption=x)).encode() for x in ("one", "zwölf")]
    (root / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + raw[0] + b"\r\n\r\n  \n" + raw[1])
    source = PairsFolder(root)
    assert [source[i].texts[0] for i in range(len(source))] == ["one", "zwölf"]
    assert source[1].key == "4#0"


def _read_in_child(source: PairsFolder, number: int, pipe: Any) -> None:
    pipe.send([source[number].key] * 50 + [source[i % 2].key for i in range(100)])


def test_read_by_several_processes_at_once(tmp_path: Path) -> None:
    source = PairsFolder(folder(tmp_path, line(key="x"), line(key="y", image="images/b.jpg")))
    same_sample(pickle.loads(pickle.dumps(source))[1], source[1])
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=_read_in_child, args=(source, i, end)) for i, (_, end) in enumerate(ends)]
    for worker in workers:
        worker.start()
    mine = [source[i % 2].key for i in range(100)]
    for number, (end, _) in enumerate(ends):
        assert end.recv() == [f"{'xy'[number]}#0"] * 50 + mine
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


BAD: list[tuple[Any, str]] = [
    ('{"image": "images/a.jpg", "caption"', "line 2: not JSON: Expecting ':' delimiter at character 36"),
    ("[1]", "line 2: [1] is not an object"),
    (line(caption="  "), "line 2: caption 0 is empty"),
    (line(caption=3), "line 2: caption 0 is 3, expected text"),
    ({"image": "images/a.jpg"}, "line 2: no caption and no question"),
    ({"caption": "x"}, "line 2: no image"),
    (line(captions=["x"]) | {"caption": "y"}, "line 2: has both caption and captions"),
    ({"image": "images/a.jpg", "captions": ["x", ""]}, "line 2: caption 1 is empty"),
    (line(question=""), "line 2: question is empty"),
    (line(split="restval"), 'line 2: split is "restval", expected train, val or test'),
    (line(boxes=[[5, 5, 5, 9]]), "line 2: box 0 [5, 5, 5, 9] has no area (x2 <= x1 or y2 <= y1)"),
    (line(boxes=[[1, 2, 3]]), "line 2: box 0 is [1, 2, 3], expected [x1, y1, x2, y2] in pixels"),
    (line(boxes=[[0, 0, 1, float("nan")]]), "line 2: box 0 [0, 0, 1, nan] has no area (x2 <= x1 or y2 <= y1)"),
    (
        line(boxes=[[0, 0, 4, 4], [0, 0, 50, 9]], width=40, height=30),
        "line 2: box 1 [0, 0, 50, 9] is outside the picture of 40x30 pixels",
    ),
    (
        line(boxes=[[-4, 0, 9, 9]], width=40, height=30),
        "line 2: box 0 [-4, 0, 9, 9] is outside the picture of 40x30 pixels",
    ),
    (line(boxes=[[0, 0, 9, 9]], labels=["a", "b"]), "line 2: 2 labels for 1 boxes"),
    (line(labels=["a"]), "line 2: 1 labels but no boxes"),
    (line(boxes=[], regions="x.npz"), "line 2: has both boxes and regions; the boxes belong in x.npz"),
    (line(regions="x.pkl"), 'line 2: regions is "x.pkl", expected the name of a .npz or .safetensors file'),
    (line(links=[[1, 0, 1, 0]]), "line 2: link [1, 0, 1, 0] names text 1 of 1"),
    (line(links=[[0, 2, 9, 0]]), "line 2: link [0, 2, 9, 0] spans characters 2 to 9 of a text of 5"),
    (line(boxes=[[0, 0, 9, 9]], links=[[0, 2, 5, 1]]), "line 2: link [0, 2, 5, 1] names box 1 of 1"),
    (line(links=[[0, 2, 5, 0, 1]]), "line 2: link [0, 2, 5, 0, 1] names picture 1 of 1"),
    (line(links=[[0, 2]]), "line 2: link [0, 2] is not [text, first character, end, box] or that and a picture"),
    (line(answers=[["dog", 2]]), 'line 2: answer ["dog", 2] is not [answer, score between 0 and 1]'),
    (line(tags="dog"), 'line 2: tags is "dog", expected a list of texts, none empty'),
    (line(width="40"), 'line 2: width is "40", expected a whole number of pixels'),
    (line(key="good"), "line 2: key 'good' was already given by {path}, line 1"),
    (line(key=True), "line 2: key is true, expected text or a whole number"),
    (
        line(image=["images/a.jpg", "images/b.jpg"], boxes=[[0, 0, 1, 1]]),
        "line 2: boxes is [[0, 0, 1, 1]], expected a list of 2, one for each image",
    ),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[x[1][8:40] for x in BAD])
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, record: Any, message: str) -> None:
    root = folder(tmp_path, line(key="good"), record, line(key="last", image="images/b.jpg"))
    path = root / "pairs.jsonl"
    expected = f"{path}, {message}".replace("{path}", str(path))
    with pytest.raises(BadInput) as stopped:
        PairsFolder(root)
    assert str(stopped.value) == expected
    rest = PairsFolder(root, on_error="skip")
    assert [rest[i].key for i in range(len(rest))] == ["good#0", "last#0"]
    assert rest.skipped == (expected,)


def test_missing_files_are_named_or_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path, line(image="images/none.jpg"), line(regions="none.npz"), line())
    source = PairsFolder(root)
    messages = [
        f"{root / 'pairs.jsonl'}, line 1: picture {root / 'images/none.jpg'} does not exist",
        f"{root / 'pairs.jsonl'}, line 2: regions file {root / 'none.npz'} does not exist",
    ]
    for number, message in enumerate(messages):
        with pytest.raises(BadInput) as stopped:
            source[number]
        assert str(stopped.value) == message
    rest = PairsFolder(root, on_error="skip")
    assert (len(rest), list(rest.skipped)) == (1, messages)


def test_a_box_outside_the_picture_is_found_when_the_picture_is_read(tmp_path: Path) -> None:
    source = PairsFolder(folder(tmp_path, line(boxes=[[0, 0, 41.5, 9]])))
    with pytest.raises(BadInput, match=r"line 1: box 0 \[0, 0, 41\.5, 9\] is outside the picture of 40x30 pixels$"):
        source[0]


def test_up_to_a_pixel_outside_is_clipped() -> None:
    found = to_fractions(np.array([[-0.5, 0, 40.5, 31]]), 40, 30, "x")
    np.testing.assert_array_equal(found, np.array([[0, 0, 1, 1]], np.float32))
    with pytest.raises(BadInput, match="outside"):
        to_fractions(np.array([[40.1, 0, 40.5, 30]]), 40, 30, "x")


def test_a_link_past_the_regions_of_a_file(tmp_path: Path) -> None:
    root = folder(tmp_path, line(regions="a.npz", links=[[0, 2, 5, 3]]))
    write_regions(root / "a.npz", picture(1))
    with pytest.raises(BadInput, match=r"line 1: a link names region 3 of images/a\.jpg, which has 3$"):
        PairsFolder(root)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((2, 4), np.nan, np.float32)}, "features of region 0 are not finite (NaN or infinite)"),
        ({"features": np.zeros((2, 4), np.int64)}, "features are int64 of shape (2, 4), expected float16 or float32"),
        ({"boxes": np.zeros((3, 4), np.float32)}, "boxes of shape (3, 4), expected (2, 4), one for each feature"),
        ({"scores": np.zeros(3, np.float32)}, "scores of shape (3,), expected 2 rows"),
        ({"labels": np.zeros(2, np.float32)}, "labels are float32, expected integers"),
        ({"features": None}, "has no array 'features' (has: boxes)"),
        ({"features": np.array([{}, {}])}, "not a readable .npz file: Object arrays cannot be loaded"),
    ],
)
def test_bad_region_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    boxes = np.array([[0, 0, 5, 5], [1, 1, 9, 9]], np.float32)
    arrays: dict[str, Any] = {"features": np.zeros((2, 4), np.float32), "boxes": boxes, **change}
    path = tmp_path / "x.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(BadInput) as stopped:
        read_picture(path.read_bytes(), "npz", (40, 30), "x", "", str(path))
    assert str(stopped.value).startswith(f"{path}: {message}")
    for suffix in ("npz", "safetensors"):
        with pytest.raises(BadInput, match=f"cut: not a readable .{suffix} file"):
            read_picture(path.read_bytes()[:60], suffix, (40, 30), "x", "", "cut")


def test_nothing_is_left_when_a_record_is_bad(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"pairs\.jsonl, record 2: caption 0 is empty$"):
        write_pairs(tmp_path, [line(), line(caption="")])
    with pytest.raises(BadInput, match=r"record 2: key 'a' was already given$"):
        write_pairs(tmp_path, [line(key="a"), line(key="a")])
    assert list(tmp_path.iterdir()) == []


def test_records_of_any_source_read_back_as_the_same_samples(tmp_path: Path) -> None:
    root = folder(
        tmp_path,
        line(key="k", captions=["a dog", {"text": "ein Hund", "language": "de"}], tags=["dog"]),
        line(key="m", false_captions=["a cat"]),
        line(key="n", image=["images/a.jpg", "images/b.jpg"], answers=[["true", 1]]),
    )
    source = PairsFolder(root)
    again = folder(tmp_path / "again", *to_records(source))
    other = PairsFolder(again)
    assert len(other) == len(source) == 4
    for number in range(4):
        same_sample(other[number], source[number])
    assert [x["key"] for x in to_records(source)] == ["k", "m", "n"]


def test_unused_fields_are_counted(tmp_path: Path) -> None:
    source = PairsFolder(folder(tmp_path, line(url="u", captoin="x"), line(url="v")))
    assert source.index.ignored == {"url": 2, "captoin": 1}
    assert parse_line(line(url="u"), "here", "1").ignored == ("url",)


def test_bad_arguments(tmp_path: Path) -> None:
    root = folder(tmp_path, line())
    with pytest.raises(BadInput, match="split 'dev' is not one of train, val, test"):
        PairsFolder(root, "dev")
    with pytest.raises(BadInput, match="on_error 'ignore' is not one of stop, skip"):
        PairsFolder(root, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="none/pairs.jsonl: cannot be read: No such file"):
        (tmp_path / "none").mkdir()
        PairsFolder(tmp_path / "none")


def test_a_file_that_shrank_since_it_was_opened(tmp_path: Path) -> None:
    root = folder(tmp_path, line(), line())
    source = PairsFolder(root)
    (root / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match=r"pairs\.jsonl: ends after 3 bytes, \d+ expected \(changed since"):
        source[1]
