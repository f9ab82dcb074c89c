from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pair_makers import jpeg

from intarsia.data.check import check, inspect
from intarsia.data.formats.corpus import CorpusSource
from intarsia.data.opening import open_source
from intarsia.errors import BadInput

KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg", "cocoid": 42, "imgid": 0, "split": split, "sentids": [i],
         "sentences": [{"raw": f"A dog, {split}. ", "tokens": ["a", "dog"], "imgid": 0, "sentid": i}]}
        for i, split in enumerate(("train", "restval", "val", "test"))
    ],
}  # fmt: skip
for i, image in enumerate(KARPATHY["images"]):
    image.update(cocoid=42 + i, filename=f"COCO_val2014_{42 + i:012}.jpg")  # type: ignore[attr-defined]
COCO = {
    "images": [
        {"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "width": 60, "height": 40},
        {"id": 8, "file_name": "x.jpg"},
    ],
    "annotations": [{"id": 1, "image_id": 7, "caption": "a cat\n"}, {"id": 2, "image_id": 7, "caption": "two cats"}],
}
GENOME = [
    {"id": 5, "regions": [{"region_id": 1, "image_id": 5, "phrase": "red hat ", "x": 1, "y": 2, "width": 3, "height": 4},
                          {"region_id": 2, "image_id": 5, "phrase": "red hat", "x": 1, "y": 2, "width": 3, "height": 4}]},
    {"image_id": 6, "regions": [{"region_id": 3, "image_id": 6, "phrase": "a wall", "x": 0, "y": 0, "width": 3, "height": 4}]},
]  # fmt: skip
CASES: dict[str, tuple[str, Any, list[tuple[str, str]]]] = {
    "karpathy": ("dataset_coco.json", KARPATHY, [(f"val2014/COCO_val2014_{42 + i:012}.jpg", f"A dog, {s}.") for i, s in enumerate(("train", "restval", "val", "test"))]),
    "coco": ("captions_val2014.json", COCO, [("COCO_val2014_000000000007.jpg", "a cat"), ("COCO_val2014_000000000007.jpg", "two cats")]),
    "genome": ("region_descriptions.json", GENOME, [("5.jpg", "red hat"), ("6.jpg", "a wall")]),
    "cc": ("Train_GCC-training.tsv", 'a "big" dog\thttp://x.org/1.jpg\nb\thttps://x.org/2\n', [("http://x.org/1.jpg", 'a "big" dog'), ("https://x.org/2", "b")]),
    "cc12m": ("cc12m.tsv", "http://x.org/1.jpg\ta dog\n", [("http://x.org/1.jpg", "a dog")]),
    "wukong": ("wukong_0.csv", 'url,caption\nhttp://x.org/1.jpg,"狗, 猫"\n', [("http://x.org/1.jpg", "狗, 猫")]),
    "sbu": ("sbu.json", {"image_urls": ["http://a/1.jpg"], "captions": [" my dog "], "user_ids": ["u"]}, [("http://a/1.jpg", "my dog")]),
    "vilt": ("annot.json", [["1.jpg", "my dog"]], [("1.jpg", "my dog")]),
    "flickr": ("results_20130124.token", "1000092795.jpg#0\tTwo young guys\n1000092795.jpg#1\tTwo men\n", [("1000092795.jpg", "Two young guys"), ("1000092795.jpg", "Two men")]),
    "flickr30k-cn": ("flickr30kzhb_val.txt", "\ufeff10002456#enc#0\t几个男人\n", [("10002456.jpg", "几个男人")]),
    "coco-cn": ("imageid.human-written-caption.txt", "COCO_train2014_000000123456#0\t一只 狗。\n", [("COCO_train2014_000000123456.jpg", "一只 狗。")]),
    "aic-icc": ("caption_validation_annotations_20170910.json", [{"url": "u", "image_id": "ab.jpg", "caption": ["一个男人。", "一个\n人"]}],
                [("ab.jpg", "一个男人"), ("ab.jpg", "一个 人")]),
    "brivl": ("train.jsonl", '{"image_id": "p/1.jpg", "sentences": [["alt_text", "x"], ["sur_text", "一只狗"]]}\n', [("p/1.jpg", "一只狗")]),
}  # fmt: skip


def put(root: Path, name: str, content: Any) -> Path:
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root / name


@pytest.mark.parametrize("name", CASES)
def test_corpora_are_opened_by_looking(name: str, tmp_path: Path) -> None:
    file, content, expected = CASES[name]
    path = put(tmp_path, file, content)
    source = open_source(path)
    assert isinstance(source, CorpusSource)
    assert [(x.pictures[0].name, x.texts[0]) for x in source] == expected  # type: ignore[attr-defined]
    chinese = name in ("flickr30k-cn", "coco-cn", "aic-icc", "brivl")
    assert {source[i].language for i in range(len(source))} == {"zh" if chinese else "en"}
    assert check(str(path)).usable == len(expected)
    assert inspect(str(path)).samples == len(expected)


def test_splits(tmp_path: Path) -> None:
    path = put(tmp_path, "dataset_coco.json", KARPATHY)
    assert [len(CorpusSource(path, x)) for x in ("train", "val", "test")] == [2, 1, 1]
    for name, split in (("flickr30k-cn", "val"), ("coco", "val"), ("aic-icc", "val")):
        file, content, expected = CASES[name]
        assert len(CorpusSource(put(tmp_path, file, content), split)) == len(expected)


def test_sbu_lines_must_be_aligned(tmp_path: Path) -> None:
    path = put(tmp_path, "SBU_captioned_photo_dataset_urls.txt", "http://a/1.jpg\nhttp://a/2.jpg\n")
    texts = put(tmp_path, "SBU_captioned_photo_dataset_captions.txt", "one\ntwo\n")
    assert [x.texts[0] for x in open_source(path)] == ["one", "two"]  # type: ignore[attr-defined]
    texts.write_text("one\n")
    with pytest.raises(BadInput, match=r"captions\.txt: 1 lines for 2 lines of .*_urls\.txt"):
        open_source(path)


def test_pixels_beside_the_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(jpeg(1))
    path = put(tmp_path, "annot.json", [["1.jpg", "my dog"]])
    assert open_source(path)[0].pictures[0].path == str(tmp_path / "images" / "1.jpg")
    assert check(str(path)).decoded == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.tsv", "http://x/1\ta\nno address\tb\n", r"a\.tsv, line 2: no column is an address"),
        ("a.tsv", "http://x/1\ta\nhttp://x/1\tb\tc\n", r"line 2: 3 columns"),
        ("a.token", "1.jpg#0\ta\nbroken\n", r"line 2: 'broken' is not image#number"),
        ("annot.json", [["1.jpg", "a"], ["2.jpg", " "]], r"record 1: caption 0 is empty"),
        ("captions.json", {"images": [{"id": 1, "file_name": "x"}], "annotations": [{"caption": "x"}]}, r"not a whole file of COCO captions: KeyError"),
        ("x.json", {"a": 1}, r"x\.json: not a file of a known kind"),
        ("x.json", "{", r"x\.json: not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(file: str, content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        open_source(put(tmp_path, file, content))
