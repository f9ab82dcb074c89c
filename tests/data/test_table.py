"""Parquet and Arrow as Hugging Face, ViLT and img2dataset write them, read by row; order and bits for any workers and ranks."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_makers import jpeg

from intarsia.data.check import check, inspect
from intarsia.data.decode import decode_image, image_size
from intarsia.data.formats.table import TableSource
from intarsia.data.opening import open_source
from intarsia.errors import BadInput

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hub(count: int, first: int = 0, **more: Any) -> Any:
    pictures = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(first, first + count)]
    columns = {"image": pa.array(pictures, IMAGE), "caption": [[f"dog {i}", f"a dog {i}"] for i in range(count)]}
    return pa.table(columns | more)


def arrow(path: Path, table: Any, stream: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("layout", ["parquet", "file", "stream"])
def test_rows_are_samples_with_their_own_pixels(layout: str, tmp_path: Path) -> None:
    path = tmp_path / f"validation-00000.{'parquet' if layout == 'parquet' else 'arrow'}"
    if layout == "parquet":
        pq.write_table(hub(7), path, row_group_size=3)
    else:
        arrow(path, hub(7), layout == "stream")
    source = open_source(path)
    assert isinstance(source, TableSource)
    assert len(source) == 14
    for number in (13, 0, 6, 7):
        sample = pickle.loads(pickle.dumps(source))[number]
        row = number // 2
        assert sample.texts == (f"{'a ' * (number % 2)}dog {row}",)
        assert sample.key == f"{path.name}:{row}#{number % 2}"
        assert sample.pictures[0].name == f"{row}.jpg"
        np.testing.assert_array_equal(decode_image(sample.pictures[0].path), decode_image(jpeg(row)))
        assert image_size(sample.pictures[0].path) == (40, 30)
    assert source.index.splits == {"val": 7}
    assert (check(str(path)).usable, inspect(str(path)).with_pixels) == (14, 7)


def test_vilts_arrows(tmp_path: Path) -> None:
    """Columns of write_karpathy and write_vg."""
    for split, name in (("train", "restval"), ("test", "test")):
        table = pa.table(
            {"image": [jpeg(1)], "caption": [["a", "b"]], "image_id": [f"COCO_{split}.jpg"], "split": [name]}
        )
        arrow(tmp_path / f"coco_caption_karpathy_{name}.arrow", table)
    source = open_source(tmp_path)
    assert source.index.splits == {"train": 1, "test": 1}  # type: ignore[attr-defined]
    assert {x.pictures[0].name for x in source} == {"COCO_train.jpg", "COCO_test.jpg"}  # type: ignore[attr-defined]
    boxes = {x: [[3, 4]] for x in ("width", "height", "x", "y")}
    path = arrow(
        tmp_path / "vg.arrow", pa.table({"image": [jpeg(1)], "caption": [["a", "b"]], **boxes, "image_id": [7]})
    )
    genome = TableSource(path)
    assert (len(genome), genome[1].pictures[0].name) == (2, "7")
    assert genome.index.ignored == {".width": 1, ".height": 1, ".x": 1, ".y": 1}


def test_vilts_questions(tmp_path: Path) -> None:
    """Columns of write_vqa; the test's answers are empty."""
    asked = {
        "questions": [["what?", "why?"], ["who?"]],
        "question_id": [[1, 2], [3]],
        "answer_labels": [[[0, 1], [2]], []],
    }
    told = {"answers": [[["dog", "cat"], ["so"]], []], "answer_scores": [[[1.0, 0.3], [0.6]], []]}
    table = {"image": [jpeg(1), jpeg(2)], "image_id": [7, 8], "split": ["train", "test"], **asked, **told}
    source = TableSource(arrow(tmp_path / "vqav2_train.arrow", pa.table(table)))
    assert [(x.texts[0], x.answers, x.pictures[0].name) for x in source] == [
        ("what?", (("dog", 1.0), ("cat", 0.3)), "7"),
        ("why?", (("so", 0.6),), "7"),
        ("who?", (), "8"),
    ]
    assert source.index.ignored == {".question_id": 3, ".answer_labels": 3}
    np.testing.assert_array_equal(decode_image(source[2].pictures[0].path), decode_image(jpeg(2)))
    told["answer_scores"][0][1] = []
    with pytest.raises(BadInput, match=r"bad\.arrow, row 0: question 1 has not as many scores as answers"):
        TableSource(arrow(tmp_path / "bad.arrow", pa.table(table | told)))


def test_a_data_set_on_disk(tmp_path: Path) -> None:
    """What DatasetDict.save_to_disk leaves: a folder a split, streams named by state.json, files of a cache beside them."""
    for split, first in (("train", 0), ("validation", 5)):
        for part in (0, 1):
            arrow(tmp_path / split / f"data-{part:05d}-of-00002.arrow", hub(2, first + 2 * part), stream=True)
        arrow(tmp_path / split / "cache-0123.arrow", hub(1), stream=True)
        files = [{"filename": f"data-{part:05d}-of-00002.arrow"} for part in (0, 1)]
        (tmp_path / split / "state.json").write_text(json.dumps({"_data_files": files, "_format_type": None}))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    whole = open_source(tmp_path)
    assert (len(whole), whole.index.splits) == (16, {"train": 4, "val": 4})  # type: ignore[attr-defined]
    one = open_source(tmp_path / "validation")
    assert [one[i].pictures[0].name for i in (0, 7)] == ["5.jpg", "8.jpg"]


def test_a_picture_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg(3))
    image = pa.array([{"bytes": None, "path": "images/a.jpg"}, {"bytes": None, "path": None}], IMAGE)
    pq.write_table(pa.table({"image": image, "text": ["a", "b"]}), tmp_path / "x.parquet")
    source = TableSource(tmp_path / "x.parquet")
    np.testing.assert_array_equal(decode_image(source[0].pictures[0].path), decode_image(jpeg(3)))
    with pytest.raises(BadInput, match=r"x\.parquet, row 1: image holds no picture"):
        decode_image(source[1].pictures[0].path)


def test_what_img2dataset_could_not_fetch_is_counted(tmp_path: Path) -> None:
    states = ["success", "failed_to_download", "success", "failed_to_resize", "failed_to_download"]
    pictures = [jpeg(i) if x == "success" else None for i, x in enumerate(states)]
    said = {"url": ["u"] * 5, "caption": list("abcde"), "key": [f"{i:09d}" for i in range(5)], "status": states}
    pq.write_table(pa.table(said | {"jpg": pa.array(pictures, pa.binary())}), tmp_path / "00000.parquet")
    source = TableSource(tmp_path)
    assert [(source[i].texts[0], source[i].pictures[0].name) for i in range(2)] == [
        ("a", "000000000"),
        ("c", "000000002"),
    ]
    assert [x.rsplit(": ", 1)[1] for x in source.skipped] == [
        "2 rows with status 'failed_to_download' left out",
        "1 rows with status 'failed_to_resize' left out",
    ]
    np.testing.assert_array_equal(decode_image(source[1].pictures[0].path), decode_image(jpeg(2)))


def test_errors_name_file_and_row(tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 not one PAR1")
    with pytest.raises(BadInput, match=r"bad\.parquet: not a whole Parquet or Arrow file"):
        open_source(bad)
    pq.write_table(pa.table({"image": [jpeg()], "note": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet: no column of captions .* among image, note"):
        open_source(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": ["x.jpg"], "text": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(BadInput, match=r"b\.parquet: no column of pictures"):
        open_source(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": [jpeg()] * 2, "text": ["x", " "]}), tmp_path / "c.parquet")
    with pytest.raises(BadInput, match=r"c\.parquet, row 1: caption 0 is empty"):
        open_source(tmp_path / "c.parquet")
    assert len(open_source(tmp_path / "c.parquet", on_error="skip")) == 1


def test_extraction_reads_tables(tmp_path: Path) -> None:
    from intarsia.extract import extract
    from intarsia.features import open_extractor

    (tmp_path / "t").mkdir()
    pq.write_table(hub(5), tmp_path / "t" / "train-00000.parquet", row_group_size=2)
    extract(tmp_path / "t", tmp_path / "out", open_extractor("pixels"), batch=2, show=False)
    made = open_source(tmp_path / "out")
    assert [made[i].texts[0] for i in range(0, 10, 2)] == [f"dog {i}" for i in range(5)]
    assert len({made[i].pictures[0].features.tobytes() for i in range(0, 10, 2)}) == 5
