from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from pair_makers import MADE, folder, jpeg, line, picture, same_sample
from safetensors.numpy import save_file

from intarsia.data.check import Spread, check, inspect
from intarsia.data.formats.pairs import PairsFolder
from intarsia.data.formats.regions import write_regions
from intarsia.data.formats.shard_files import map_arrays
from intarsia.data.formats.shards import ShardSource, ShardWriter
from intarsia.data.formats.tar import TarSource, write_tar
from intarsia.data.opening import open_source
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.worlds import WorldConfig, WorldSource


def shards(root: Path, **changes: Any) -> Path:
    writer = ShardWriter(root, MADE, **changes)
    for number in range(4):
        writer.add(picture(number))
    writer.finish(line(image=f"images/{i}.jpg") for i in range(4))
    return root


def tar(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, [(f"k{i}", {"caption": f"dog {i}"}, [("jpg", jpeg(i))], []) for i in range(3)])
    return path


def test_every_layout_is_recognised(tmp_path: Path) -> None:
    root = folder(tmp_path / "pairs", line(), line(split="val"))
    single = tar(tmp_path / "tars" / "0.tar")
    kinds = {root: PairsFolder, root / "pairs.jsonl": PairsFolder, single: TarSource, single.parent: TarSource}
    kinds[shards(tmp_path / "shards")] = ShardSource
    for path, kind in kinds.items():
        for spec in (path, str(path)):
            source = open_source(spec)
            assert isinstance(source, kind)
            assert len(source) > 0
    assert [len(open_source(root, split)) for split in (None, "train", "val", "test")] == [2, 1, 1, 0]


def test_data_sets_with_commas_between_are_one(tmp_path: Path) -> None:
    root = folder(tmp_path / "pairs", line(), line(split="val"))
    both = f"{root},{tar(tmp_path / 'tars' / '0.tar')}"
    source = open_source(both)
    assert [source[i].key.split("/")[0] for i in range(len(source))] == ["pairs", "pairs", "0.tar", "0.tar", "0.tar"]
    assert len(open_source(both, "val")) == 1
    with pytest.raises(BadInput, match="two data sets are called 'pairs'"):
        open_source(f"{root},{root}")
    with pytest.raises(BadInput, match="nowhere: no such file"):
        open_source(f"{root},{tmp_path}/nowhere")


def test_generated_worlds() -> None:
    source = open_source("worlds:12:3")
    assert isinstance(source, WorldSource)
    assert (len(source), source.seed, source.split) == (12, 3, "train")
    same_sample(source[5], WorldSource(count=12, seed=3)[5])
    same_sample(open_source("worlds-zh:6:3")[5], WorldSource(WorldConfig(languages=("zh",)), count=6, seed=3)[5])
    parts = {split: open_source("worlds:4", split) for split in ("train", "val", "test")}
    assert [x.split for x in parts.values() if isinstance(x, WorldSource)] == ["train", "validation", "test"]
    with pytest.raises(BadInput, match="split 'dev' is not one of train, val, test"):
        open_source("worlds:4", "dev")


def test_what_cannot_be_opened_lists_what_can(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in "abcdefg":
        (tmp_path / "other" / f"{name}.csv").write_text("")
    accepted = (
        r"expected a folder with shards\.json, films\.json, pairs\.jsonl, \*\.tar, \*\.parquet or \*\.arrow, a UNITER text database, "
        r"folders of pictures with texts; a \.jsonl, \.tar, \.parquet or \.arrow file; a caption file of a known corpus, "
        r"FashionGen's \.h5, MUGE's tables of pictures or B2T2's records; worlds:"
    )
    for name, found in (
        ("none", "no such file or folder"),
        ("empty", "a folder that holds nothing"),
        ("other", r"a folder that holds a\.csv, b\.csv, c\.csv, d\.csv, e\.csv, \.\."),
        ("other/a.csv", "not a file of a known kind"),
        ("worlds:x", "no such file or folder"),
    ):
        with pytest.raises(BadInput, match=rf"{name}: {found}; {accepted}"):
            open_source(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------------ inspect


def test_inspect_a_folder(tmp_path: Path) -> None:
    root = folder(
        tmp_path,
        line(captions=["a dog", {"text": "狗在沙发上", "language": "zh"}], boxes=[[0, 0, 9, 9]], links=[[0, 2, 5, 0]]),
        line(image="images/b.jpg", caption="one two three four", url="u", split="val"),
        line(caption=""),
    )
    report = inspect(str(root))
    assert (report.kind, report.samples, report.pictures, report.looked_at) == ("PairsFolder", 3, 2, 3)
    assert report.words == Spread(2, 11 / 3, 5)
    assert report.regions == Spread(0, 0.5, 1)
    assert report.languages == {"en": 2, "zh": 1}
    assert (report.splits, report.ignored, report.links) == ({"train": 1, "val": 1}, {"url": 1}, 1)
    assert (report.with_pixels, report.widths, report.provenance) == (2, {}, None)
    assert report.skipped == (f"{root / 'pairs.jsonl'}, line 3: caption 0 is empty",)
    assert report.sizes[".jpg"] == sum((root / "images" / f"{x}.jpg").stat().st_size for x in "ab")
    text = "\n".join(report.lines())
    for part in ("3 of 3 pairs", "2 to 5, mean 3.7", "train 1, val 1", "line 3: caption 0 is empty", "狗在沙发上"):
        assert part in text


def test_inspect_shards_tars_and_worlds(tmp_path: Path) -> None:
    report = inspect(str(shards(tmp_path / "shards")), limit=2)
    assert (report.kind, report.samples, report.pictures, report.looked_at) == ("ShardSource", 4, 4, 2)
    assert (report.widths, report.provenance, report.regions) == ({5: 2}, MADE, Spread(3, 3, 3))
    assert "tester, 5 wide, 3 classes" in "\n".join(report.lines())
    report = inspect(str(tar(tmp_path / "x.tar")))
    assert (report.kind, report.samples, report.sizes) == (
        "TarSource",
        3,
        {".tar": (tmp_path / "x.tar").stat().st_size},
    )
    report = inspect("worlds:5")
    assert (report.kind, report.samples, report.pictures, report.sizes) == ("WorldSource", 5, None, {})


# -------------------------------------------------------------------------------------------------------------------- check


def test_good_data_has_no_problems(tmp_path: Path) -> None:
    root = folder(tmp_path / "pairs", line(captions=["a", "b"]), line(image="images/b.jpg"), line(key="again"))
    found = check(str(root))
    assert (found.samples, found.usable, found.pictures, found.decoded, found.problems) == (4, 4, 2, 2, ())
    found = check(str(tar(tmp_path / "x.tar")))
    assert (found.samples, found.usable, found.pictures, found.decoded, found.problems) == (3, 3, 3, 3, ())
    found = check(str(shards(tmp_path / "shards")))
    assert (found.samples, found.usable, found.pictures, found.decoded, found.problems) == (4, 4, 4, 0, ())
    found = check("worlds:6")
    assert (found.samples, found.usable, found.pictures, found.problems) == (6, 6, 6, ())


def _cut(root: Path) -> None:
    path = root / "images/b.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def _wide(root: Path) -> None:
    other = dataclasses.replace(picture(1), features=np.zeros((3, 7), np.float16))
    write_regions(root / "a.npz", picture(0))
    write_regions(root / "b.npz", other)


def _nan(root: Path) -> None:
    made = picture(1)
    made.features[2, 3] = np.nan
    write_regions(root / "b.npz", made)


PROBLEMS: list[tuple[str, dict[str, Any], dict[str, Any], Any, str]] = [
    ("missing", {}, {"image": "images/c.jpg"}, None, "{at} line 2: picture {root}/images/c.jpg does not exist"),
    ("cut", {}, {}, _cut, "{at} line 2: picture images/b.jpg: {root}/images/b.jpg: cannot be decoded: "),
    ("size", {}, {"width": 80, "height": 60}, None, "{at} line 2: picture images/b.jpg: is 40x30 pixels, the data set"),
    (
        "outside",
        {},
        {"boxes": [[0, 0, 90, 9]]},
        None,
        "{at} line 2: box 0 [0, 0, 90, 9] is outside the picture of 40x30",
    ),
    ("flat", {}, {"boxes": [[5, 5, 2, 9]]}, None, "{at} line 2: box 0 [5, 5, 2, 9] has no area (x2 <= x1 or y2 <= y1)"),
    ("empty", {}, {"caption": ""}, None, "{at} line 2: caption 0 is empty"),
    ("key", {"key": "k"}, {"key": "k"}, None, "{at} line 2: key 'k' was already given by {at} line 1"),
    ("nan", {}, {"regions": "b.npz"}, _nan, "{at} line 2: {root}/b.npz: features of region 2 are not finite"),
    (
        "width",
        {"regions": "a.npz"},
        {"regions": "b.npz"},
        _wide,
        "{at} line 2: picture images/b.jpg: features are 7 wide, those of images/a.jpg are 5 wide",
    ),
    (
        "link",
        {},
        {"regions": "b.npz", "links": [[0, 0, 1, 3]]},
        lambda root: write_regions(root / "b.npz", picture(1)),
        "{at} line 2: a link names region 3 of images/b.jpg, which has 3",
    ),
    (
        "two ways",
        {"boxes": [[0, 0, 9, 9]]},
        {"image": "images/a.jpg", "boxes": [[0, 0, 9, 8]]},
        None,
        "{at} line 2: picture images/a.jpg has other boxes or regions than in {at} line 1",
    ),
]


@pytest.mark.parametrize(
    ("first", "second", "spoil", "message"), [x[1:] for x in PROBLEMS], ids=[x[0] for x in PROBLEMS]
)
def test_each_problem_is_found(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], spoil: Any, message: str
) -> None:
    third = line(image=["images/a.jpg"], key="third") if "boxes" not in first and "regions" not in first else None
    lines = [line(**first), line(**{"image": "images/b.jpg", **second}), *([third] if third else [])]
    root = folder(tmp_path, *lines)
    if spoil is not None:
        spoil(root)
    expected = message.replace("{at}", f"{root / 'pairs.jsonl'},").replace("{root}", str(root))
    with pytest.raises(BadInput) as stopped:
        check(str(root))
    assert str(stopped.value).startswith(expected)
    found = check(str(root), on_error="skip")
    assert len(found.problems) == 1
    assert found.problems[0].startswith(expected)
    assert found.usable == len(lines) - 1
    assert found.problems[0] in found.lines()


def test_a_cut_picture_in_a_tar(tmp_path: Path) -> None:
    samples = [(f"k{i}", {"caption": "x"}, [("jpg", jpeg(i)[: -150 * i])], []) for i in (1, 0)]
    samples[1] = ("k0", {"caption": "x"}, [("jpg", jpeg(0))], [])
    write_tar(tmp_path / "x.tar", samples)
    found = check(str(tmp_path / "x.tar"), on_error="skip")
    assert (found.samples, found.usable, found.pictures, found.decoded) == (2, 1, 2, 1)
    assert found.problems[0].startswith(f"{tmp_path / 'x.tar'}, sample k1: picture k1.jpg: ")


def test_changed_shards(tmp_path: Path) -> None:
    path = shards(tmp_path) / "shard-00000.safetensors"
    arrays = {name: array.copy() for name, array in map_arrays(path).items()}
    arrays["features"][4] = np.nan
    with safetensors.safe_open(path, "numpy") as file:
        about = file.metadata()
    save_file(arrays, path, metadata=about)
    with pytest.raises(BadInput, match="its bytes have changed"):
        check(str(tmp_path))
    found = check(str(tmp_path), on_error="skip")
    assert len(found.problems) == 2
    assert found.problems[1].endswith("picture images/1.jpg: features of region 1 are not finite (NaN or infinite)")
    assert (found.samples, found.usable) == (4, 3)


def test_any_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [WorldSource(count=4)[i] for i in range(4)]
    bad = dataclasses.replace(samples[1].pictures[0], boxes=np.float32([[0, 0, 2, 1]]))
    samples[1] = dataclasses.replace(samples[1], pictures=(bad,), links=())
    samples[2] = dataclasses.replace(samples[2], key=samples[0].key)
    samples[3] = dataclasses.replace(samples[3], texts=(" ",), links=())

    class Listed(list[Any]):
        provenance = None

    monkeypatch.setattr("intarsia.data.check.open_source", lambda *_, **__: Listed(samples))
    found = check("listed", on_error="skip")
    assert (found.samples, found.usable) == (4, 1)
    assert [x.split(": ", 1)[0] for x in found.problems] == [f"sample {samples[i].key}" for i in (1, 2, 3)]
    assert "its key was already given" in found.problems[1]
    assert "a text is empty" in found.problems[2]


def test_what_is_nearly_always_a_mistake_is_counted(tmp_path: Path) -> None:
    """Region features whose numbers are fine and whose meaning is not."""
    good = picture(0, 3)
    probs = np.full((3, 5), 0.1, np.float32)
    probs[:, 2] = 0.6
    cases = {
        "good": replace(good, features=np.abs(good.features), probs=probs, labels=np.full(3, 2)),
        "shifted": replace(good, features=np.abs(good.features), probs=probs, labels=np.full(3, 1)),
        "logits": replace(good, features=np.abs(good.features), probs=probs * 9, labels=np.full(3, 2)),
        "signed": replace(good, features=-np.abs(good.features) - 1, probs=probs, labels=np.full(3, 2)),
    }
    for extractor, expected in (("butd", 3), ("light", 2)):
        root = tmp_path / extractor
        made = Provenance(extractor, good.features.shape[1], classes=tuple("abcde"))
        writer = ShardWriter(root, made)
        for name, shown in cases.items():
            writer.add(replace(shown, name=f"{name}.jpg"))
        writer.finish({"key": name, "image": f"{name}.jpg", "caption": "x"} for name in cases)
        found = check(str(root))
        assert found.usable == 4 and found.problems == ()
        assert sum(found.odd.values()) == len(found.odd) == expected
        assert any("1 pictures whose labels are one beside their likeliest classes" in x for x in found.lines())
