from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_makers import jpeg
from store_makers import H, W, arrays, b64

from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats.shards import ShardSource
from intarsia.data.opening import open_source
from intarsia.errors import BadInput


def put(root: Path, name: str, content: Any) -> Path:
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root / name


COCO = {
    "images": [{"id": 7, "file_name": "7.jpg", "width": 40, "height": 30}, {"id": 8, "file_name": "8.jpg"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}],
    "annotations": [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4]},
        {"image_id": 7, "category_id": 18, "bbox": [30, 20, 20, 20]},
        {"image_id": 7, "category_id": 18, "bbox": [5, 5, 0, 4]},
    ],
}
OBJECTS = [{"image_id": 7, "objects": [{"names": ["dog", "hound"], "x": 1, "y": 2, "w": 3, "h": 4, "object_id": 1}]}]
ATTRIBUTES = [
    {"image_id": 7, "attributes": [{"names": ["dog"], "attributes": ["big", "red"], "x": 1, "y": 2, "w": 3, "h": 4}]}
]
GRAPHS = {
    "7": {
        "width": 40,
        "height": 30,
        "objects": {"o1": {"name": "dog", "attributes": ["red"], "x": 1, "y": 2, "w": 3, "h": 4}},
    }
}
SIZES = [{"image_id": 7, "width": 40, "height": 30}]
CASES: dict[str, tuple[Any, list[str], list[list[float]]]] = {
    "instances_val2014.json": (COCO, ["toothbrush", "dog"], [[1, 2, 4, 6], [30, 20, 40, 30]]),
    "objects.json": (OBJECTS, ["dog"], [[1, 2, 4, 6]]),
    "attributes.json": (ATTRIBUTES, ["big red dog"], [[1, 2, 4, 6]]),
    "val_sceneGraphs.json": (GRAPHS, ["red dog"], [[1, 2, 4, 6]]),
}


@pytest.mark.parametrize("name", CASES)
def test_boxes_and_names_of_objects(name: str, tmp_path: Path) -> None:
    content, labels, boxes = CASES[name]
    put(tmp_path, "image_data.json", SIZES)
    (tmp_path / "7.jpg").write_bytes(jpeg(0, 40, 30))
    path = put(tmp_path, name, content)
    source = open_source(path)
    assert [x.texts for x in source] == [(", ".join(labels),)]
    assert source[0].pictures[0].name == "7.jpg" and source[0].pictures[0].tags == tuple(labels)
    np.testing.assert_allclose(source[0].pictures[0].boxes * [40, 30, 40, 30], boxes, atol=1e-5)
    assert check(str(path)).decoded == 1
    assert inspect(str(path)).ignored == ({".boxes without area": 1} if name.startswith("instances") else {})


def test_detections_find_their_pictures(tmp_path: Path) -> None:
    found = [{"image_id": 42, "box": [1, 2, 3, 4], "category_name": "dog", "score": 0.5, "category_id": 18}]
    path = put(tmp_path, "res101_coco_minus_refer_notime_dets.json", found)
    (tmp_path / "COCO_train2014_000000000042.jpg").write_bytes(jpeg(0, 40, 30))
    np.testing.assert_allclose(open_source(path)[0].pictures[0].boxes * [40, 30, 40, 30], [[1, 2, 4, 6]], atol=1e-5)


def regions(root: Path, boxes: Any) -> Path:
    about = ("x", "y", "width", "height")
    phrases = [(f"part {i}", [x1, y1, x2 - x1, y2 - y1]) for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())]
    listed = [{"phrase": text, **dict(zip(about, box, strict=True))} for text, box in phrases]
    put(root, "image_data.json", [{"image_id": 42, "width": W, "height": H}])
    return put(root, "region_descriptions.json", [{"id": 42, "regions": listed}])


def test_phrases_of_visual_genome_are_linked_to_their_regions(tmp_path: Path) -> None:
    a = arrays(0)
    path = regions(tmp_path, a["boxes"])
    source = open_source(path)
    assert [[(x.start, x.end, x.region) for x in sample.links] for sample in source] == [[(0, 6, i)] for i in range(3)]
    # features of the same boxes in another order, the last of them elsewhere
    order = [1, 0, 2]
    boxes = a["boxes"][order]
    boxes[2] = [50, 35, 59, 39]
    line = f"42\t{W}\t{H}\t3\t{b64(boxes)}\t{b64(a['features'][order])}\n"
    done = convert(put(tmp_path, "x.tsv", line), tmp_path / "out", "shards", extractor="butd", pairs=str(path))
    assert (done.lines, done.links_left_out) == (1, 1)
    assert "1 links without a region left out" in done.lines_of_text()[0]
    shards = ShardSource(tmp_path / "out")
    assert [[x.region for x in sample.links] for sample in shards] == [[1], [0], []]


def test_a_broken_file_of_boxes_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, "objects.json", [{"image_id": 1, "objects": [{"names": [], "x": 1}]}])
    with pytest.raises(BadInput, match=r"objects\.json: not a whole file of Visual Genome objects: IndexError"):
        open_source(path)


def test_splits_and_tags_of_coco_cn(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "imageid.human-written-caption.txt",
        "COCO_val2014_000000000042#0\t一只狗\nCOCO_train2014_000000000007#0\t猫\n",
    )
    put(tmp_path, "coco-cn_val.txt", "COCO_val2014_000000000042")
    put(tmp_path, "imageid.human-written-tags.txt", "COCO_val2014_000000000042 狗 草地\n")
    source = open_source(path)
    assert source.index.splits == {"val": 1, "train": 1}
    assert source[0].pictures[0].tags == ("狗", "草地") and source[1].pictures[0].tags == ()


RELATED = [
    {
        "image_id": 7,
        "relationships": [
            {"relationship_id": 1, "predicate": "RIDES", "subject": {"object_id": 1, "x": 1, "y": 2, "w": 3, "h": 4, "name": "man"},
             "object": {"object_id": 2, "x": 5, "y": 6, "w": 50, "h": 8, "names": ["horse", "pony"]}},
            {"relationship_id": 2, "predicate": "rides", "subject": {"object_id": 1, "x": 1, "y": 2, "w": 3, "h": 4, "name": "man"},
             "object": {"object_id": 3, "x": 0, "y": 0, "w": 9, "h": 9, "name": "horse"}},
            {"relationship_id": 3, "predicate": "near", "subject": {"object_id": 1, "x": 1, "y": 2, "w": 3, "h": 4, "name": "man"},
             "object": {"object_id": 4, "x": 45, "y": 0, "w": 9, "h": 9, "name": "tree"}},
        ],
    },
    {"image_id": 8, "relationships": []},
]  # fmt: skip


def thing(number: int, x: int, name: str) -> dict[str, Any]:
    return {"object_id": number, "x": x, "y": 2, "w": 3, "h": 4, "names": [name]}


def test_relationships_of_visual_genome_are_phrases_with_both_ends_linked(tmp_path: Path) -> None:
    put(tmp_path, "image_data.json", SIZES)
    path = put(tmp_path, "relationships.json", RELATED)
    source = open_source(path)
    assert [x.texts[0] for x in source] == ["man rides horse", "man near tree"]
    words = [[(x.texts[0][y.start : y.end], y.region) for y in x.links] for x in source]
    assert words == [[("man", 0), ("horse", 1), ("horse", 2)], [("man", 0)]]
    boxes = [[1, 2, 4, 6], [5, 6, 40, 14], [0, 0, 9, 9]]
    np.testing.assert_allclose(source[0].pictures[0].boxes * [40, 30, 40, 30], boxes, atol=1e-5)
    assert source[0].pictures[0].tags == ("man", "horse", "horse")
    assert inspect(str(path)).ignored == {".boxes without area": 1} and check(str(path)).usable == 2
    graph = {
        "image_id": 7,
        "objects": [thing(1, 1, "man"), thing(2, 9, "hat")],
        "relationships": [{"predicate": "wears", "subject_id": 1, "object_id": 2}],
    }
    path = put(tmp_path, "scene_graphs.json", [graph])
    assert [(x.texts[0], len(x.links)) for x in open_source(path)] == [("man wears hat", 2)]
    graph["relationships"][0]["object_id"] = 3
    with pytest.raises(
        BadInput, match=r"scene_graphs\.json: not a whole file of Visual Genome relationships: KeyError\(3\)"
    ):
        open_source(put(tmp_path, "scene_graphs.json", [graph]))


def open_images(root: Path) -> None:
    put(root, "class-descriptions-boxable.csv", "/m/01g317,Person\n/m/04bcr3,Table\n")
    put(root, "oidv7-class-descriptions.csv", 'LabelName,DisplayName\n/m/01bqk0,"Wheel, spare"\n/m/083wq,Wooden\n')
    (root / "images").mkdir()
    (root / "images/0001eeaf4aed83f9.jpg").write_bytes(jpeg(0, 40, 30))


def test_tags_boxes_and_relationships_of_open_images(tmp_path: Path) -> None:
    open_images(tmp_path)
    head, image = "ImageID,Source,LabelName,Confidence", "0001eeaf4aed83f9"
    tags = f"{head}\n{image},verification,/m/01g317,1\n{image},verification,/m/01bqk0,0\n{image},crowdsource-verification,/m/04bcr3,1\nffff,verification,/m/083wq,0\n"
    path = put(tmp_path, "oidv6-train-annotations-human-imagelabels.csv", tags)
    (sample,) = open_source(path)
    assert (sample.texts, sample.pictures[0].tags) == (("person, table",), ("person", "table"))
    assert sample.pictures[0].path.endswith(f"images/{image}.jpg")
    assert inspect(str(path)).ignored == {".labels not confirmed": 1} and check(str(path)).decoded == 1
    boxes = f"{head},XMin,XMax,YMin,YMax,IsOccluded\n{image},xclick,/m/01g317,1,0.1,0.5,0.2,0.8,0\n{image},xclick,/m/01bqk0,1,0,1,0.5,1,0\n"
    path = put(tmp_path, "validation-annotations-bbox.csv", boxes)
    (sample,) = open_source(path)
    assert (sample.texts[0], list(open_source(path).index.splits)) == ("person, wheel, spare", ["val"])
    np.testing.assert_allclose(sample.pictures[0].boxes, [[0.1, 0.2, 0.5, 0.8], [0, 0.5, 1, 1]], atol=1e-6)
    columns = "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationLabel"
    person, table = "/m/01g317", "/m/04bcr3"
    ends = "0.1,0.5,0.2,0.8,0,1,0.5,1"
    related = f"{columns}\n{image},{person},{table},{ends},at\n{image},{table},/m/083wq,0,1,0.5,1,0,1,0.5,1,is\n{image},{person},{table},{ends},inside_of\n"
    path = put(tmp_path, "oidv6-train-annotations-vrd.csv", related)
    samples = list(open_source(path))
    assert [x.texts[0] for x in samples] == ["person at table", "table is wooden", "person inside of table"]
    assert [[(y.start, y.end, y.region) for y in x.links] for x in samples] == [
        [(0, 6, 0), (10, 15, 1)],
        [(0, 5, 1)],
        [(0, 6, 0), (17, 22, 1)],
    ]
    np.testing.assert_allclose(samples[1].pictures[0].boxes, [[0.1, 0.2, 0.5, 0.8], [0, 0.5, 1, 1]], atol=1e-6)


def test_what_open_images_lacks_is_named(tmp_path: Path) -> None:
    row = "ffff,xclick,/m/01g317,1,0.1,0.5,0.2,0.8\n"
    path = put(
        tmp_path, "train-annotations-bbox.csv", f"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n{row}"
    )
    with pytest.raises(BadInput, match=r"bbox\.csv: its labels are codes: put class-descriptions\.csv beside it"):
        open_source(path)
    open_images(tmp_path)
    with pytest.raises(
        BadInput, match=r"bbox\.csv, Open Images, record ffff: has boxes, but picture ffff\.jpg, whose size they need"
    ):
        open_source(path)
    path.write_text(path.read_text().replace("0.1", "left"))
    with pytest.raises(BadInput, match=r"bbox\.csv, line 2: could not convert string to float: 'left'"):
        open_source(path)
    path.write_text(path.read_text().replace("/m/01g317", "/m/none"))
    with pytest.raises(BadInput, match=r"line 2: label '/m/none' has no name among 5 in"):
        open_source(path)
