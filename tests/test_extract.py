import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
from PIL import Image

from intarsia.data.formats.shard_files import ShardIndex
from intarsia.data.formats.shards import ShardSource
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.extract import SKIPPED, extract
from intarsia.features import open_extractor

ROOT = Path(__file__).parents[1]


def picture(number):
    """A grey picture with one coloured rectangle, and its box in pixels."""
    rng = np.random.default_rng([number, 5])
    image = np.full((60, 80, 3), 225, np.uint8)
    x, y = int(rng.integers(4, 40)), int(rng.integers(4, 30))
    image[y : y + 24, x : x + 30] = rng.integers(0, 120, 3)
    return image, [x, y, x + 30, y + 24]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    with (root / "pairs.jsonl").open("w") as handle:
        for number in range(11):
            image, box = picture(number)
            Image.fromarray(image).save(root / f"images/{number}.png")
            captions = [{"text": "a box", "language": "en"}, {"text": "ein Kasten", "language": "de"}]
            line = {
                "key": f"k{number}",
                "image": f"images/{number}.png",
                "captions": captions,
                "boxes": [box, [0, 0, 3, 3]],
            }
            line |= {
                "labels": ["box", "corner"],
                "links": [[0, 2, 5, 0], [1, 4, 10, 1]],
                "split": "test" if number > 8 else "train",
            }
            handle.write(json.dumps(line) + "\n")
    return root


def run(source, out, name="pixels", **options):
    return extract(source, out, open_extractor(name), **{"batch": 4, "show": False} | options)


def contents(out):
    return {x.name: x.read_bytes() for x in sorted(Path(out).iterdir())}


def test_found_regions_carry_captions_splits_and_links(folder, tmp_path):
    out = tmp_path / "out"
    report = run(folder, out)
    assert (report.pictures, report.resumed, report.skipped, report.lines_left_out) == (11, 0, (), 0)
    assert report.links_lost == 11  # the corner of three pixels is nobody's region
    train, test = ShardSource(out, split="train"), ShardSource(out, split="test")
    assert (len(train), len(test)) == (18, 4)
    assert train.provenance == open_extractor("pixels").provenance
    sample = train[0]
    found = open_extractor("pixels")([picture(0)[0]])[0]
    np.testing.assert_allclose(sample.pictures[0].features, found.features.astype(np.float16))
    assert sample.tags == ("box", "corner")
    assert sample.texts == ("a box",)
    (link,) = sample.links
    assert sample.texts[0][link.start : link.end] == "box"
    np.testing.assert_allclose(sample.pictures[0].boxes[link.region] * [80, 60, 80, 60], picture(0)[1], atol=1.5)
    assert Path(sample.pictures[0].path).resolve() == (folder / "images/0.png").resolve()
    assert train[1].language == "de"
    assert report.regions == sum(len(ShardSource(out).picture(i).boxes) for i in range(11))


def test_given_boxes_are_kept_in_order(folder, tmp_path):
    report = run(folder, tmp_path / "out", "grid", boxes="given")
    sample = ShardSource(tmp_path / "out")[1]
    assert report.links_lost == 0
    np.testing.assert_allclose(sample.pictures[0].boxes * [80, 60, 80, 60], [picture(0)[1], [0, 0, 3, 3]], atol=1e-4)
    assert sample.links[0].region == 1
    expected = open_extractor("grid").features_at([picture(0)[0]], [sample.pictures[0].boxes])[0].features
    np.testing.assert_allclose(sample.pictures[0].features, expected, atol=2e-3, rtol=2e-3)


def test_a_picture_given_two_sets_of_boxes_is_an_error(folder, tmp_path):
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    other = json.loads(lines[0]) | {"key": "again", "boxes": [[1, 1, 9, 9], [0, 0, 3, 3]]}
    (folder / "pairs.jsonl").write_text("\n".join([*lines, json.dumps(other)]) + "\n")
    with pytest.raises(BadInput, match=r"line 12: gives other boxes for picture images/0\.png"):
        run(folder, tmp_path / "out", boxes="given")
    assert run(folder, tmp_path / "found").pictures == 11


def test_given_boxes_must_be_there(folder, tmp_path):
    lines = [json.loads(x) for x in (folder / "pairs.jsonl").read_text().splitlines()]
    for field in ("boxes", "labels", "links"):
        del lines[6][field]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    with pytest.raises(BadInput, match=r"picture images/6\.png: no boxes are given"):
        run(folder, tmp_path / "out", boxes="given")
    assert run(folder, tmp_path / "skipping", boxes="given", on_error="skip").lines_left_out == 1


def test_a_bad_picture_is_named(folder, tmp_path):
    (folder / "images/5.png").write_bytes((folder / "images/5.png").read_bytes()[:60])
    with pytest.raises(BadInput, match=r"images/5\.png: cannot be decoded"):
        run(folder, tmp_path / "out")
    report = run(folder, tmp_path / "out", on_error="skip")
    assert report.pictures == 10
    assert report.lines_left_out == 1
    assert len(report.skipped) == 1
    assert (tmp_path / "out" / SKIPPED).read_text() == report.skipped[0] + "\n"
    assert ShardIndex.read(tmp_path / "out").left_out == 1
    Image.fromarray(picture(5)[0]).save(folder / "images/5.png")
    again = run(folder, tmp_path / "out", on_error="skip")
    assert (again.pictures, again.resumed, again.lines_left_out) == (11, 10, 0)
    assert not (tmp_path / "out" / SKIPPED).exists()


def test_missing_pictures_are_skipped_and_counted(folder, tmp_path):
    (folder / "images/2.png").unlink()
    with pytest.raises(BadInput, match=r"images/2\.png does not exist"):
        run(folder, tmp_path / "out")
    report = run(folder, tmp_path / "skipping", on_error="skip")
    assert report.pictures == 10
    assert len(report.skipped) == 1


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_changes_nothing(folder, tmp_path, batch):
    run(folder, tmp_path / "a", "grid", batch=4)
    run(folder, tmp_path / "b", "grid", batch=batch, workers=1)
    for number in range(11):
        one, other = (ShardSource(tmp_path / x).picture(number) for x in "ab")
        assert one.name == other.name
        np.testing.assert_allclose(one.features.astype(np.float32), other.features.astype(np.float32), atol=2e-3)


SLOW = """
import sys, time
from intarsia.extract import extract
from intarsia.features import open_extractor
inner = open_extractor("grid", device="cpu")
class Slow:
    name, provenance, by_shape = inner.name, inner.provenance, False
    def __call__(self, images):
        time.sleep(0.3)
        return inner(images)
extract(sys.argv[1], sys.argv[2], Slow(), batch=3, pictures_per_shard=4, show=False)
"""


def test_killed_and_run_again_it_writes_the_same_shards(folder, tmp_path):
    run(folder, tmp_path / "whole", "grid", batch=3, pictures_per_shard=4)
    out = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(folder), str(out)], env=environment)
    try:
        while not (out / "shards.json").exists():
            assert process.poll() is None, "ended before it wrote a shard"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not ShardIndex.read(out).finished
    before = len(ShardIndex.read(out).shards)
    with pytest.raises(BadInput, match="not finished"):
        ShardSource(out)
    report = run(folder, out, "grid", batch=3, pictures_per_shard=4)
    assert report.resumed == 4 * before > 0
    assert contents(out) == contents(tmp_path / "whole")
    assert run(folder, out, "grid", batch=3, pictures_per_shard=4).resumed == 11
    assert contents(out) == contents(tmp_path / "whole")


def test_regions_that_cannot_be_stored_are_named(folder, tmp_path):
    inner = open_extractor("grid", device="cpu")

    class Broken:
        name, provenance, by_shape = inner.name, inner.provenance, False

        def __call__(self, images):
            found = inner(images)
            for pixels, regions in zip(images, found, strict=True):
                if (pixels == picture(6)[0]).all():
                    regions.features[3, 1] = np.nan
            return found

    with pytest.raises(BadInput, match=r"^picture images/6\.png: features of region 3 are not finite"):
        extract(folder, tmp_path / "out", Broken(), batch=4, show=False)
    report = extract(folder, tmp_path / "out", Broken(), batch=4, show=False, on_error="skip")
    assert (report.pictures, report.lines_left_out) == (10, 1)
    assert (tmp_path / "out" / SKIPPED).read_text().startswith("picture images/6.png: features of region 3")


def test_every_shard_says_what_made_it(folder, tmp_path):
    run(folder, tmp_path / "out", "grid", pictures_per_shard=4)
    index = ShardIndex.read(tmp_path / "out")
    assert (len(index.shards), index.regions) == (3, "found")
    for shard in index.shards:
        with safetensors.safe_open(tmp_path / "out" / f"{shard.name}.safetensors", "numpy") as file:
            assert Provenance(**json.loads(file.metadata()["provenance"])) == replace(
                index.provenance, classes=[], attributes=[]
            )
    text = (tmp_path / "out/shards.json").read_text()
    (tmp_path / "out/shards.json").write_text(text.replace('"cells": "6"', '"cells": "7"'))
    assert text != (tmp_path / "out/shards.json").read_text()
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors: says its features were made by .*grid"):
        ShardSource(tmp_path / "out").picture(5)


def test_found_and_given_boxes_do_not_mix(folder, tmp_path):
    run(folder, tmp_path / "out", "grid", boxes="given")
    with pytest.raises(BadInput, match="begun with boxes given, now found"):
        run(folder, tmp_path / "out", "grid")
    assert run(folder, tmp_path / "out", "grid", boxes="given").resumed == 11


def test_other_settings_do_not_mix(folder, tmp_path):
    extract(folder, tmp_path / "out", open_extractor("grid", cells=2), show=False)
    with pytest.raises(BadInput, match="begun with settings"):
        extract(folder, tmp_path / "out", open_extractor("grid", cells=3), show=False)


def test_a_folder_of_pictures_needs_no_lines(folder, tmp_path):
    (folder / "pairs.jsonl").unlink()
    (folder / "notes.txt").write_text("not a picture")
    Image.fromarray(picture(3)[0]).save(folder / "b.JPG")
    report = run(folder, tmp_path / "out")
    assert report.pictures == 12
    (shard,) = ShardIndex.read(tmp_path / "out").shards
    names = json.loads((tmp_path / "out" / f"{shard.name}.json").read_text())["names"]
    assert names == sorted(["b.JPG", *(f"images/{x}.png" for x in range(11))])
    (tmp_path / "none").mkdir()
    for empty in ("none", "out"):  # the shards' own lines are no pictures
        with pytest.raises(BadInput, match="no picture"):
            run(tmp_path / empty, tmp_path / "more")


def test_nothing_usable_is_an_error(folder, tmp_path):
    for number in range(11):
        (folder / f"images/{number}.png").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"none of its 11 pictures can be used; the first: .*images/0\.png"):
        run(folder, tmp_path / "out", on_error="skip")


def test_tars_are_read_in_place(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(5):
            (folder / f"{number}.txt").write_text(f"caption {number}")
            tar.add(folder / f"images/{number}.png", f"{number}.png")
            tar.add(folder / f"{number}.txt", f"{number}.txt")
    assert run(tmp_path / "a.tar", tmp_path / "out").pictures == 5
    source = ShardSource(tmp_path / "out")
    assert [source[i].texts[0] for i in range(5)] == [f"caption {i}" for i in range(5)]
    expected = open_extractor("pixels")([picture(4)[0]])[0]
    np.testing.assert_allclose(source[4].pictures[0].features, expected.features.astype(np.float16))


def test_wrong_choices_are_named(folder, tmp_path):
    with pytest.raises(BadInput, match="no such file or folder"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(BadInput, match="boxes 'gold'"):
        run(folder, tmp_path / "out", boxes="gold")
    with pytest.raises(BadInput, match="on_error 'ignore'"):
        run(folder, tmp_path / "out", on_error="ignore")
