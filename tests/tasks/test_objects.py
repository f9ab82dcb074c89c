"""Objects that captions are to name: their files, which of them stay, and captions that name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from intarsia.caption_runs import Named, begin, write
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import find
from intarsia.tasks.benchmarks.objects import (
    Detected,
    places_of,
    read_forms,
    read_heights,
    read_objects,
    to_name,
)
from intarsia.text import SPECIALS, Vocab
from intarsia.tuning_runs import open_items
from intarsia.worlds.twins import write_twin

TREE = {
    "LabelName": "Entity",
    "Subcategory": [
        {
            "LabelName": "Animal",
            "Subcategory": [{"LabelName": "Dog"}, {"LabelName": "Bird", "Subcategory": [{"LabelName": "Owl"}]}],
        },
        {"LabelName": "Kitchen & dining room table"},
    ],
}


def box(name: str, score: float, *corners: float) -> Detected:
    x1, y1, x2, y2 = corners or (0, 0, 99, 99)
    return Detected(name, score, (x1, y1, x2, y2))


def test_the_particular_puts_the_general_aside_where_they_overlap(tmp_path: Path) -> None:
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    heights = read_heights(tmp_path / "tree.json")
    assert heights == {"entity": 3, "animal": 2, "dog": 0, "bird": 1, "owl": 0, "kitchen & dining room table": 0}
    both = [box("animal", 0.9), box("dog", 0.5, 0, 0, 99, 97)]
    assert to_name(both, heights) == ["dog"]
    assert to_name(both) == ["animal", "dog"]
    assert to_name([box("animal", 0.9), box("dog", 0.5, 0, 0, 99, 80)], heights) == ["animal", "dog"]
    assert to_name([box("owl", 0.4), box("dog", 0.5)], heights) == ["dog", "owl"], "of one height both stay"
    with pytest.raises(BadInput, match="detected class 'piano' is not in the tree"):
        to_name([box("piano", 1)], heights)


def test_the_three_surest_are_named_by_the_words_people_use() -> None:
    seen = [
        box(x, y)
        for x, y in (
            ("person", 0.99),
            ("dog", 0.3),
            ("owl", 0.8),
            ("dog", 0.7),
            ("kitchen & dining room table", 0.6),
            ("bird", 0.0),
        )
    ]
    assert to_name(seen) == ["owl", "dog", "table"]
    assert to_name([box("dog", 0.9), box("dog", 0.8), box("dog", 0.7), box("owl", 0.6)]) == ["dog"], (
        "of the three surest boxes"
    )


def test_files_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "boxes.tsv"
    path.write_text('COCO_val2014_000000000042.jpg\t[{"class": "Dog", "conf": 0.5, "rect": [1, 2, 3, 4]}]\n')
    assert read_objects(path)["42"] == [box("dog", 0.5, 1, 2, 3, 4)]
    for bad in ("a.jpg", 'a.jpg\t[{"class": "Dog"}]', 'a.jpg\t[{"class": "Dog", "conf": 1, "rect": [1, 2]}]'):
        path.write_text(f"{bad}\n")
        with pytest.raises(BadInput, match="line 1"):
            read_objects(path)
    (tmp_path / "forms.tsv").write_text("dog\tdog,dogs,puppies\n")
    assert read_forms(tmp_path / "forms.tsv") == {"dog": ("dog", "dogs", "puppies")}
    (tmp_path / "forms.tsv").write_text("dog\n")
    with pytest.raises(BadInput, match="line 1: 'dog' is not word TAB forms"):
        read_forms(tmp_path / "forms.tsv")


def test_pieces_and_their_forms() -> None:
    vocab = Vocab((*SPECIALS, "fire", "dog", "dogs", "hy", "##drant"))
    piece = {x: vocab.encode(x).ids.tolist() for x in ("fire", "dog", "dogs", "hydrant")}
    found = places_of(["dog", "fire hydrant"], vocab, {"dog": ("dog", "dogs", "hydrant")})
    assert found == [[sorted([*piece["dog"], *piece["dogs"]])], [piece["fire"], *([x] for x in piece["hydrant"])]]


def test_captions_name_what_was_detected(tmp_path: Path) -> None:
    write_twin("coco-captions", tmp_path, 6, 2, level=0)
    source = open_items(find("coco-captions"), tmp_path, str(tmp_path / "regions"), "val")
    captioner, _ = begin("oscar", "tiny", None, None, source)
    names = sorted({item.pictures[0] for item, _ in source.kept})
    rows = [(name, [{"class": x, "conf": 1.0, "rect": [0, 0, 9, 9]} for x in ("Large", "Small")]) for name in names[:1]]
    path = tmp_path / "boxes.tsv"
    path.write_text("".join(f"{name}\t{json.dumps(x)}\n" for name, x in rows))
    said = write(captioner.eval(), source, beams=2, named=Named(path))
    by_name = {item.pictures[0]: said[item.key.partition("#")[0]] for item, _ in source.kept}
    assert all(x in by_name[names[0]] for x in ("large", "small")), "pieces may go on behind them"
    assert (
        by_name[names[1]]
        == write(captioner, source, beams=2, named=Named(path))[source.kept[-1][0].key.partition("#")[0]]
    )


def test_objects_are_for_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", str(tmp_path), "--forms", "x"])
    assert caught.value.code == 2
    assert "say with --objects" in capsys.readouterr().err
