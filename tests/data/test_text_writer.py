from __future__ import annotations

import json
from pathlib import Path

import lmdb
import lz4.frame
import msgpack
import numpy as np
import pytest
import yaml
from store_makers import NAMES, F, arrays, lxmert, oscar, uniter_msgpack

from intarsia.batch import Picture
from intarsia.cli_data import data
from intarsia.data.convert import convert
from intarsia.data.line_writers import VLBERTWriter
from intarsia.data.opening import open_source
from intarsia.data.stores import open_store
from intarsia.errors import BadInput

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", "A", "dog", "##s", "what", "is", "it", "?"]
LINES = [
    {"key": "a", "image": "1.jpg", "captions": ["A dogs", "A dog!"], "height": 5, "strange": 1},
    {"key": "b", "image": ["2-img0.png", "2-img1.png"], "caption": "dogs", "answers": [["False", 1.0]]},
    {"key": "c", "image": "1.jpg", "question": "what is it?", "answers": [["dog", 1.0], ["cat", 0.3]]},
]


def write(root: Path) -> Path:
    (root / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (root / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
    return root / "pairs.jsonl"


def as_uniter_reads(folder: Path) -> dict[str, dict[str, object]]:
    """By the calls of UNITER's own reader."""
    found = {}
    with lmdb.open(str(folder), readonly=True, create=False) as env, env.begin(buffers=True) as transaction:
        for key in json.loads((folder / "id2len.json").read_text()):
            found[key] = msgpack.loads(lz4.frame.decompress(transaction.get(key.encode())), raw=False)
    return found


def test_a_text_database_as_uniter_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path), tmp_path / "x_train.db"
    data(["convert", str(source), str(out), "--layout", "uniter-text", "--vocab", str(tmp_path / "vocab.txt")])
    assert "4 texts written" in capsys.readouterr().out
    found = as_uniter_reads(out)
    assert found["a#0"] == {"sent": "A dogs", "input_ids": [6, 7, 8], "img_fname": "1.jpg.npz"}
    assert found["b"]["img_fname"] == ["2-img0.png.npz", "2-img1.png.npz"] and found["b"]["target"] == 0
    assert found["c"]["target"] == {"labels": [0, 1], "scores": [1.0, 0.3]} and found["c"]["input_ids"] == [
        9,
        10,
        11,
        12,
    ]
    meta, lengths, images, texts = (
        json.loads((out / f"{x}.json").read_text()) for x in ("meta", "id2len", "txt2img", "img2txts")
    )
    assert (meta["CLS"], meta["SEP"], meta["MASK"], meta["UNK"], meta["v_range"]) == (2, 3, 4, 1, [5, 13])
    assert lengths == {"a#0": 3, "a#1": 3, "b": 2, "c": 4}
    assert images["a#1"] == "1.jpg.npz" and texts["1.jpg.npz"] == ["a#0", "a#1", "c"]
    again = open_source(out)
    assert [(x.texts[0], x.answers) for x in again][2:] == [
        ("dogs", (("False", 1.0),)),
        ("what is it?", (("dog", 1.0), ("cat", 0.3))),
    ]
    with pytest.raises(BadInput, match="already there"):
        data(["convert", str(source), str(out), "--layout", "uniter-text", "--vocab", str(tmp_path / "vocab.txt")])


def test_answers_that_a_table_lacks_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, table = write(tmp_path), tmp_path / "ans2label.json"
    table.write_text('{"yes": 0, "dog": 1}')
    out = str(tmp_path / "x.db")
    with pytest.raises(BadInput, match="needs --vocab"):
        data(["convert", str(source), out, "--layout", "uniter-text"])
    data(
        [
            "convert",
            str(source),
            out,
            "--layout",
            "uniter-text",
            "--vocab",
            str(tmp_path / "vocab.txt"),
            "--answers",
            str(table),
        ]
    )
    assert "1 answers that the table does not have left out" in capsys.readouterr().out.replace("\n", " ")
    assert as_uniter_reads(Path(out))["c"]["target"] == {"labels": [1], "scores": [1.0]}
    assert not (Path(out) / "ans2label.json").exists()


def test_an_image_database_says_how_many_regions_count(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "feat_th0.2_max100_min2"
    convert(lxmert(tmp_path / "in"), out, "uniter")
    counts = json.loads((tmp_path / "nbb_th0.2_max100_min2.json").read_text())
    with lmdb.open(str(out), readonly=True) as env, env.begin() as transaction:
        for name, count in counts.items():
            value = msgpack.unpackb(transaction.get(name.encode()), raw=False)["conf"]
            conf = np.frombuffer(value[b"data"], value[b"type"])
            assert count == min(max(int((conf > 0.2).sum()), 2), 100, len(conf))
    store = open_store(out)
    assert store is not None
    assert counts == {name: len(store.picture(i).boxes) for i, name in enumerate(store.names)}


def test_oscars_captioning_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "val.feature.tsv"
    done = convert(oscar(tmp_path / "in"), out, "oscar", width=F)
    assert (done.written, done.lines, done.lines_left_out) == (3, 3, 0)
    parts = yaml.safe_load((tmp_path / "val.yaml").read_text())
    assert parts == {
        "feature": "val.feature.tsv",
        "label": "val.label.tsv",
        "hw": "val.hw.tsv",
        "caption": "val.caption.json",
    }
    said = [{"image_id": x, "caption": f"picture {x[-2:]}"} for x in NAMES]
    assert json.loads((tmp_path / "val.caption.json").read_text()) == said
    whole = json.loads((tmp_path / "val.caption_coco_format.json").read_text())
    assert [x["caption"] for x in whole["annotations"]] == [x["caption"] for x in said]
    key, labels = (tmp_path / "val.label.tsv").read_text().splitlines()[0].split("\t")
    assert key == NAMES[0] and [x["class"] for x in json.loads(labels)] == [f"thing {i}" for i in range(3)]
    lines = (tmp_path / "val.label.tsv").read_bytes()
    offsets = [int(x) for x in (tmp_path / "val.label.lineidx").read_text().split()]
    assert [lines[x:].split(b"\t")[0].decode() for x in offsets] == NAMES
    store = open_store(tmp_path / "val.yaml", width=F)
    assert store is not None and store.said(1) == [{"captions": ["picture 73"]}] and store.picture(0).width == 60


def test_oscar_needs_sizes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(BadInput, match="its size is not known"):
        convert(uniter_msgpack(tmp_path / "in"), tmp_path / "v.feature.tsv", "oscar")


@pytest.mark.parametrize("layout", ["brivl", "vl-bert"])
def test_lines_with_captions_are_read_again(layout: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = oscar(tmp_path / "in")
    out = tmp_path / ("train.jsonl" if layout == "brivl" else "train_frcnn.json")
    done = convert(source, out, layout, width=F)
    assert (done.written, done.lines, done.lines_left_out) == (3, 3, 0)
    lines = [json.loads(x) for x in out.read_text().splitlines()]
    if layout == "brivl":
        assert lines[0]["image_id"] == NAMES[0] and lines[0]["sentences"] == [["sur_text", "picture 42"]]
        assert lines[0]["bbox"] == arrays(0)["boxes"].astype(int).tolist()
    else:
        assert lines[1] == {
            "image": NAMES[1],
            "caption": ["picture", "73"],
            "frcnn": f"train_frcnn_frcnn.zip@/{NAMES[1]}.json",
        }
        store = open_store(out)
        assert store is not None and store.said(1) == [{"captions": ["picture 73"]}]
        np.testing.assert_array_equal(store.picture(1).features, arrays(1)["features"])


def test_half_written_lines_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    source, out = oscar(tmp_path / "in"), tmp_path / "x.json"
    calls: list[str] = []
    content = VLBERTWriter.content

    def dies(self: VLBERTWriter, picture: Picture) -> dict[str, object]:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(picture.name)
        return content(self, picture)

    monkeypatch.setattr(VLBERTWriter, "content", dies)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, "vl-bert", width=F)
    assert not out.exists() and not (tmp_path / "x_frcnn").exists()
    monkeypatch.setattr(VLBERTWriter, "content", content)
    done = convert(source, out, "vl-bert", width=F)
    assert (done.written, done.before, done.lines) == (2, 1, 3)
