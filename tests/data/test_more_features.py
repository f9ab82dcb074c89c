from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from more_makers import oscar_table, oscar_torch
from store_makers import NAMES, F, H, W, arrays, b64

from intarsia.cli_data import data
from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.torch_file import Lazy, read_torch
from intarsia.data.stores import open_store
from intarsia.errors import BadInput


def ernie_line(i: int, label: str) -> str:
    a = arrays(i)
    rows = len(a["boxes"])
    cells = [f"the dog {i}", W, H, rows - 1, 1, b64(a["boxes"]), b64(a["features"]), "1 2 3 4", label]
    return "\t".join(map(str, cells)) + "\n"


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".tsv.gz"])
def test_expressions_of_ernie_vil(suffix: str, tmp_path: Path) -> None:
    raw = (ernie_line(0, "0.1 0.9 0.6") + ernie_line(1, "0.1 0.2 0.3 0.4")).encode()
    path = tmp_path / f"refcoco{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    store = open_store(path)
    assert store is not None and store.names == ["1", "2"]
    for i in (1, 0, 1):  # back and forth
        np.testing.assert_array_equal(store.picture(i).features, arrays(i)["features"])
        np.testing.assert_allclose(store.picture(i).boxes, arrays(i)["boxes"] / [W, H, W, H], atol=1e-6)
    assert store.said(0) == [{"captions": ["the dog 0"], "links": [[0, 0, 9, 1]]}]
    assert store.said(1) == [{"captions": ["the dog 1"]}]  # no box overlaps by half
    done = convert(path, tmp_path / "out", "shards", extractor="butd")
    source = ShardSource(tmp_path / "out")
    assert (done.lines, [x.region for x in source[0].links], source[1].links) == (2, [1], ())
    assert check(str(path)).usable == 2


def test_faults_of_ernie_vil_name_line_and_value(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(
        ernie_line(0, "0.1 0.9 0.6")
        + ernie_line(1, "0.1")
        + ernie_line(2, "0.1 x 0.3 0.4 0.5").replace(b64(arrays(2)["boxes"]), "AAAA")
    )
    problems = check(str(path), on_error="skip").problems
    assert problems[0] == f"{path}, line 2: label holds 1 numbers for 4 boxes"
    assert problems[1].startswith(f"{path}, line 3: image_loc: ")


def test_tensors_stay_in_the_file(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    made = {
        "a": base,
        "part": base[1:3],
        "columns": base[:, ::2],
        "turned": base.t(),
        "none": base[:0],
        "int": torch.tensor([1, 2]),
        "half": base.half(),
        "said": ["x", 1],
    }
    for zipped in (False, True):
        path = tmp_path / f"{zipped}.pt"
        torch.save(made, path, _use_new_zipfile_serialization=zipped)
        found = pickle.loads(pickle.dumps(read_torch(path)))
        assert list(found) == list(made) and found["said"] == ["x", 1]
        for name, value in made.items():
            if isinstance(value, torch.Tensor):
                assert isinstance(found[name], Lazy)
                np.testing.assert_array_equal(found[name].array(), value.numpy())
                assert found[name].array().dtype == value.numpy().dtype


@pytest.mark.parametrize("zipped", [False, True])
def test_a_cut_torch_file_is_refused(zipped: bool, tmp_path: Path) -> None:
    path = oscar_torch(tmp_path, zipped)
    whole = path.read_bytes()
    for size in (3, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=str(path)):
            open_store(path, width=F)


def test_a_tensor_that_reaches_out_of_its_storage_is_refused(tmp_path: Path) -> None:
    path = oscar_torch(tmp_path, False)
    found = next(iter(read_torch(path).values()))
    with pytest.raises(BadInput, match="reaches out of its"):
        Lazy(found.file, found.storage, 1, found.shape, found.strides).array()
    with pytest.raises(BadInput, match="reaches out of its"):
        Lazy(found.file, found.storage, 0, found.shape, (-1, 1)).array()


def visualbert(root: Path, **more: Any) -> Path:
    whole = {}
    for i, name in enumerate(NAMES):
        a = arrays(i)
        whole[f"{name}.jpg.npz"] = (a["features"], torch.from_numpy(a["boxes"]), a["conf"])
    torch.save(whole | more, root / "features_chunk_val.th", _use_new_zipfile_serialization=False)
    return root / "features_chunk_val.th"


def test_visualberts_chunks_need_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = visualbert(tmp_path)
    with pytest.raises(
        BadInput,
        match=rf"picture {NAMES[0]}\.jpg: the picture is 0x0 pixels; boxes in pixels need its size \(give --sizes\)",
    ):
        check(str(path))
    (tmp_path / "sizes.json").write_text('{"42": [60, 40], "73.jpg": [60, 40], "COCO_val2014_000000000139": [60, 40]}')
    data(["check", str(path), "--sizes", str(tmp_path / "sizes.json")])
    assert "3 of 3 pictures can be used" in capsys.readouterr().out
    store = open_store(path, sizes={"42": (W, H), "73": (W, H), "139": (W, H)})
    assert store is not None
    for i in range(3):
        picture = store.picture(i)
        np.testing.assert_array_equal(picture.features, arrays(i)["features"])
        np.testing.assert_array_equal(picture.scores, arrays(i)["conf"])
        np.testing.assert_allclose(picture.boxes, arrays(i)["boxes"] / [W, H, W, H], atol=1e-6)


def test_features_without_boxes_are_whole_pictures_only_when_asked(tmp_path: Path) -> None:
    torch.save({"9": torch.ones(2, F)}, tmp_path / "obj.pt")
    with pytest.raises(BadInput, match=r"picture 9: features of shape \(2, 8\), expected \(R, 14\).*--boxes none"):
        check(str(tmp_path / "obj.pt"), width=F)
    store = open_store(tmp_path / "obj.pt", width=F, boxes="none")
    assert store is not None and store.picture(0).boxes.tolist() == [[0, 0, 1, 1]] * 2
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "9.npy", np.ones((2, F), "<f4"))
    np.save(tmp_path / "npy" / "9_cls_prob.npy", np.ones((2, 3), "<f4"))
    with pytest.raises(BadInput, match=r"picture 9: features without 9_info\.npy have no boxes"):
        check(str(tmp_path / "npy"))
    store = open_store(tmp_path / "npy", boxes="none")
    assert store is not None and store.names == ["9"]
    picture = store.picture(0)
    assert picture.boxes.tolist() == [[0, 0, 1, 1]] * 2 and picture.probs is not None and picture.probs.shape == (2, 3)


def test_the_grid_of_gqa(tmp_path: Path) -> None:
    grid = np.arange(2 * F * 2 * 3, dtype="<f4").reshape(2, F, 2, 3)
    with h5py.File(tmp_path / "gqa_spatial_0.h5", "w") as file:
        file["features"] = grid
    (tmp_path / "gqa_spatial_info.json").write_text('{"n161313": {"idx": 1, "file": 0}}')
    store = open_store(tmp_path)
    assert store is not None and store.names == ["n161313"]
    picture = store.picture(0)
    assert picture.features.shape == (6, F) and picture.width == 0
    for cell in range(6):
        y, x = divmod(cell, 3)
        np.testing.assert_array_equal(picture.features[cell], grid[1, :, y, x])
        np.testing.assert_allclose(picture.boxes[cell], [x / 3, y / 2, (x + 1) / 3, (y + 1) / 2], atol=1e-6)
    assert inspect(str(tmp_path)).regions.mean == 6


def test_a_hole_in_gqas_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "gqa_spatial_info.json").write_text('{"a": {"idx": 0}}')
    with pytest.raises(BadInput, match=r"gqa_spatial_info\.json: not a list of pictures: KeyError\('file'\)"):
        open_store(tmp_path)


def test_oscar_without_geometry_is_not_taken_for_it(tmp_path: Path) -> None:
    torch.save({"9": torch.from_numpy(oscar_table(0))}, tmp_path / "a.pt")
    with pytest.raises(BadInput, match=r"features of shape \(3, 14\), expected \(R, 2054\)"):
        check(str(tmp_path / "a.pt"))


def test_a_folder_of_files_as_img2dataset_leaves_it(tmp_path: Path) -> None:
    from pair_makers import jpeg

    inner = tmp_path / "00000"
    inner.mkdir()
    (inner / "000000000.jpg").write_bytes(jpeg())
    (inner / "000000000.txt").write_text("a dog\n")
    (inner / "000000000.json").write_text('{"url": "u", "caption": "a dog", "status": "success", "width": null}')
    (inner / "000000001.json").write_text(
        '{"url": "u", "caption": "b", "status": "failed_to_download", "error_message": "404"}'
    )
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"")
    report = inspect(str(tmp_path))
    assert (report.kind, report.samples, report.with_pixels) == ("FilesSource", 1, 1)
    assert "sample 00000/000000001: img2dataset could not fetch it: failed_to_download: 404" in report.skipped[0]
    assert check(str(tmp_path), on_error="skip").decoded == 1


def corpus(root: Path) -> Path:
    """Two data sets of VinVL's, one in chunks, with captions and a question."""
    table = [(i, b64(oscar_table(i))) for i in range(3)]
    (root / "feats" / "coco").mkdir(parents=True)
    (root / "feats" / "cc" / "7").mkdir(parents=True)
    rows = [len(arrays(i)["boxes"]) for i in range(3)]
    (root / "feats" / "coco" / "features.tsv").write_text(
        "".join(f"{40 + i}\t{rows[i]}\t{text}\n" for i, text in table[:2])
    )
    (root / "feats" / "cc" / "7" / "features.tsv").write_text(f"40\t{rows[2]}\t{table[2][1]}\n")
    for name, ids in (("coco", [40, 41]), ("cc", [40])):
        (root / "labels" / name).mkdir(parents=True)
        objects = [{"class": f"{name} thing", "rect": [0, 0, 1, 1], "conf": 0.5}]
        about = {"image_h": H, "image_w": W, "objects": objects}
        known = {41: {"gt_objects": [{"class": "dog"}, {"class": "big ball"}]}}  # annotated, and so the tags
        lines = "".join(f"{i}\t{json.dumps(about | known.get(i, {}))}\n" for i in ids)
        (root / "labels" / name / "predictions_gt.tsv").write_text(lines)
    (root / "labels" / "coco" / "QA_fileB.tsv").write_text('9001\t{"labels": ["red", "blue"]}\n')
    texts = ["coco_40\tcoco_40\ta dog", "coco_40\tcoco_40\ttwo dogs", "coco_41\tcoco_qa_41_9001\twhat colour?"]
    texts += ["cc_7_40\tcc_40\ta cat", "sbu_1_2\tsbu_2\tnot here"]
    (root / "corpus.tsv").write_text("".join(f"{x}\n" for x in texts))
    paths = "\n".join(f"  {x}: {{}}/{y}" for x, y in (("coco", "coco"), ("googlecc", "cc")))
    head = "corpus: coco_googlecc\ncorpus_file: corpus.tsv\n"
    text = f"image_feature_path:\n{paths.format('feats', 'feats')}\nimage_label_path:\n{paths.format('labels', 'labels')}\n"
    (root / "pretrain.yaml").write_text(head + text)
    return root / "pretrain.yaml"


def test_the_corpus_of_oscar_plus(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = corpus(tmp_path / "in")
    store = open_store(path, width=F)
    assert store is not None and store.names == ["coco_40", "coco_41", "googlecc_7_40"]
    assert store.said(0) == [{"captions": ["a dog", "two dogs"]}]
    assert store.said(1) == [{"question": "what colour?", "answers": [["red", 1.0], ["blue", 1.0]]}]
    np.testing.assert_array_equal(store.picture(2).features, arrays(2)["features"])
    report = inspect(str(path), width=F)
    assert (report.pictures, report.ignored) == (3, {"rows of texts without features": 1})
    done = convert(path, tmp_path / "out", "shards", extractor="vinvl", width=F)
    assert (done.written, done.lines) == (3, 3)
    source = ShardSource(tmp_path / "out")
    assert [(x.texts[0], x.pictures[0].tags) for x in source][1:] == [
        ("two dogs", ("coco thing",)),
        ("what colour?", ("dog", "big ball")),
        ("a cat", ("cc thing",)),
    ]
    assert source[2].answers == (("red", 1.0), ("blue", 1.0))


def test_faults_of_a_corpus_are_named(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    (tmp_path / "labels" / "coco" / "QA_fileB.tsv").write_text('9002\t{"labels": ["red"]}\n')
    with pytest.raises(BadInput, match=r"corpus\.tsv, line 3: question 9001 is not in QA_fileB\.tsv of coco"):
        check(str(path), width=F)
    path.write_text(path.read_text().replace("feats/cc", "feats/none"))
    with pytest.raises(BadInput, match=r"pretrain\.yaml: googlecc: .*none has no features\.tsv"):
        open_store(path, width=F)
    path.write_text("corpus_file: corpus.tsv\n")
    with pytest.raises(BadInput, match=r"not the \.yaml of a pre-training corpus: KeyError\('corpus'\)"):
        open_store(path, width=F)
