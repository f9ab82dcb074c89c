from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_makers import MADE, WIDTH, line, picture, same_picture, same_sample
from safetensors.numpy import load_file

from intarsia.batch import Example, Picture, RegionRows
from intarsia.data.formats import shards as module
from intarsia.data.formats.shard_files import ShardIndex, check_shard, map_arrays
from intarsia.data.formats.shards import ShardSource, ShardWriter
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.pack import pack


def shards(root: Path, count: int = 7, per_shard: int = 3, **changes: Any) -> Path:
    writer = ShardWriter(root, MADE, pictures_per_shard=per_shard, **changes)
    for number in range(count):
        writer.add(picture(number, number % 4))
    assert writer.finish(line(image=f"images/{i}.jpg", captions=[f"one {i}", f"two {i}"]) for i in range(count)) == 0
    return root


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(1, 4), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, regions: list[int], per_shard: int, extras: bool
) -> None:
    root = tmp_path_factory.mktemp("shards")
    made = [picture(i, n, extras=extras) for i, n in enumerate(regions)]
    writer = ShardWriter(root, MADE, pictures_per_shard=per_shard)
    for x in made:
        writer.add(x)
    writer.finish(line(image=x.name, caption=f"of {x.name}", tags=["thing"]) for x in reversed(made))
    source = ShardSource(root, verify=True)
    assert source.provenance == MADE
    assert len(source) == source.picture_count == len(made)
    for number, x in enumerate(reversed(made)):
        sample = source[number]
        assert (sample.texts, sample.tags) == ((f"of {x.name}",), ("thing",))
        same_picture(sample.pictures[0], x)
        same_picture(source.picture(number), x)
    assert [x.name for x in source.pictures()] == [x.name for x in reversed(made)]


def test_float32_features_are_rounded_to_float16(tmp_path: Path) -> None:
    exact = dataclasses.replace(picture(1, extras=False), features=np.float32([[1.0001, 2, 3, 4, 5.00001]] * 3))
    writer = ShardWriter(tmp_path, MADE)
    writer.add(exact)
    writer.finish([line(image=exact.name)])
    found = ShardSource(tmp_path)[0].pictures[0].features
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, exact.features.astype(np.float16))


def test_pictures_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    found = ShardSource(shards(tmp_path))[4].pictures[0]
    assert found.features.base is not None
    with pytest.raises(ValueError, match="read-only"):
        found.features[:] = 0
    mapped = map_arrays(tmp_path / "shard-00000.safetensors")
    for name, array in load_file(tmp_path / "shard-00000.safetensors").items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)


def test_no_file_handle_stays_open(tmp_path: Path) -> None:
    source = ShardSource(shards(tmp_path, 40, 1))
    open_files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for number in range(len(source)):
        source[number]
    if open_files:
        assert len(os.listdir("/proc/self/fd")) <= open_files + 1


def test_gather_is_what_pack_makes(tmp_path: Path) -> None:
    source = ShardSource(shards(tmp_path))
    order = [5, 0, 3, 3, 6, 4, 1, 2]
    examples = []
    for number in order:
        x = source.picture(number)
        n = len(x.boxes)
        zeros = np.zeros(n, np.int64)
        rows = RegionRows(x.features, x.boxes, zeros, np.arange(n), zeros, np.zeros(n, bool), x.probs, x.labels)
        examples.append(Example(key=x.name, regions=rows))
    packed, gathered = pack(examples).regions, source.gather(order)
    assert packed is not None
    for field in dataclasses.fields(packed):
        one, other = getattr(packed, field.name), getattr(gathered, field.name)
        if field.name == "packing":
            assert one.max_seqlen == other.max_seqlen
            one, other = one.cu_seqlens, other.cu_seqlens
        if one is None:
            assert other is None, field.name
            continue
        assert one.dtype == other.dtype, field.name
        assert one.equal(other), field.name


def test_tags_come_from_the_detector_where_the_line_gives_none(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MADE)
    writer.add(dataclasses.replace(picture(0), labels=np.array([2, 0, 1])))
    writer.finish([line(image="images/0.jpg"), line(image="images/0.jpg", tags=["mouse"])])
    source = ShardSource(tmp_path)
    assert [source[0].tags, source[1].tags] == [("cat", "dog"), ("mouse",)]


def test_pixels_are_found_where_the_shards_say(tmp_path: Path) -> None:
    root = shards(tmp_path / "shards", images="../photos")
    assert ShardSource(root)[0].pictures[0].path == str(root / "../photos" / "images/0.jpg")


def test_splits(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MADE)
    for number in range(3):
        writer.add(picture(number))
    writer.finish(line(image=f"images/{i}.jpg", split=s) for i, s in enumerate(("val", "train", "val")))
    assert len(ShardSource(tmp_path)) == 3
    part = ShardSource(tmp_path, "val")
    assert [part[i].pictures[0].name for i in range(len(part))] == ["images/0.jpg", "images/2.jpg"]
    same_picture(part.picture(1), picture(2))


def _read(source: ShardSource, pipe: Any) -> None:
    pipe.send([source[i] for i in range(len(source))])


def test_read_by_another_process(tmp_path: Path) -> None:
    source = ShardSource(shards(tmp_path))
    mine = [source[i] for i in range(len(source))]
    sent = pickle.dumps(source)
    assert len(sent) < 10_000  # no mapped features travel
    for one, number in zip(mine, range(len(source)), strict=True):
        same_sample(pickle.loads(sent)[number], one)
    context = multiprocessing.get_context("fork")
    end, other = context.Pipe()
    worker = context.Process(target=_read, args=(source, other))
    worker.start()
    for one, two in zip(mine, end.recv(), strict=True):
        same_sample(one, two)
    worker.join()
    assert worker.exitcode == 0


# ----------------------------------------------------------------------------------------------------- killed and resumed


def run(root: Path) -> None:
    writer = ShardWriter(root, MADE, pictures_per_shard=2)
    done = writer.done()
    for number in range(5):
        if f"images/{number}.jpg" not in done:
            writer.add(picture(number))
    writer.finish(line(image=f"images/{i}.jpg") for i in range(5))


def contents(root: Path) -> dict[str, bytes]:
    return {x.name: x.read_bytes() for x in root.iterdir()}


def die(root: Path, calls: int) -> None:
    """Runs, and is killed just before the given call that touches the disk."""
    left = calls

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    os.replace, os.fsync, module.save_file = dying(os.replace), dying(os.fsync), dying(module.save_file)
    run(root)


CALLS = 3 * (4 + 3 + 3) + 3 + 3
"""Three shards (arrays, names, index), captions, index: each is written, flushed, renamed and its folder flushed."""


@pytest.mark.parametrize("calls", range(CALLS + 1))
def test_killed_at_any_moment_and_resumed_gives_the_same_bytes(tmp_path: Path, calls: int) -> None:
    run(tmp_path / "whole")
    root = tmp_path / "killed"
    worker = multiprocessing.get_context("fork").Process(target=die, args=(root, calls))
    worker.start()
    worker.join()
    assert worker.exitcode == (-signal.SIGKILL if calls < CALLS else 0)
    if (root / "shards.json").exists():
        for shard in ShardIndex.read(root).shards:
            check_shard(root, shard, verify=True)
    writer = ShardWriter(root, MADE, pictures_per_shard=2)
    assert writer.done() == {f"images/{i}.jpg" for i in range(len(writer.done()))}
    assert not list(root.glob(".*"))
    run(root)
    assert contents(root) == contents(tmp_path / "whole")
    assert len(ShardSource(root, verify=True)) == 5


def test_done_counts_only_what_is_on_disk(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MADE, pictures_per_shard=2)
    for number in range(3):
        writer.add(picture(number))
    assert writer.done() == {"images/0.jpg", "images/1.jpg"} == ShardWriter(tmp_path, MADE).done()


def test_more_pictures_after_the_end(tmp_path: Path) -> None:
    shards(tmp_path, 3)
    writer = ShardWriter(tmp_path, MADE)
    writer.add(picture(3))
    writer.finish(line(image=f"images/{i}.jpg") for i in range(4))
    source = ShardSource(tmp_path, verify=True)
    for number in range(4):
        same_picture(source[number].pictures[0], picture(number, number % 4 if number < 3 else 3))


def test_two_writers_on_one_folder(tmp_path: Path) -> None:
    first, second = (ShardWriter(tmp_path, MADE, pictures_per_shard=1) for _ in range(2))
    first.add(picture(0))
    with pytest.raises(BadInput, match=r"shards\.json: changed while this run was writing"):
        second.add(picture(1))


# ---------------------------------------------------------------------------------------------------------------- bad input


def replaced(**changes: Any) -> Picture:
    return dataclasses.replace(picture(0), **changes)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replaced(features=np.zeros((3, 4), np.float16)), r"features of shape \(3, 4\), expected \(R, 5\) from tester"),
        (replaced(features=np.full((3, WIDTH), 1e6, np.float32)), "features of region 0 are not finite"),
        (replaced(boxes=np.float32([[0, 0, 1, 1], [0.5, 0, 0.5, 1], [0, 0, 1, 1]])), r"box 1 \[0\.5, 0, 0\.5, 1\] has"),
        (replaced(boxes=np.float32([[0, 0, 1, 1.5]] * 3)), r"box 0 \[0, 0, 1, 1\.5\] has no area or is outside"),
        (replaced(boxes=np.zeros((2, 4), np.float32)), r"boxes of shape \(2, 4\), expected \(3, 4\)"),
        (replaced(labels=np.array([0, 1, 3])), "labels from 0 to 3, but tester has 3 classes"),
        (replaced(probs=np.zeros((3, 4), np.float16)), "probs of 4 classes, but tester has 3"),
        (replaced(scores=None), "has probs, labels, the pictures before it have scores, probs, labels"),
        (replaced(name="images/9.jpg"), "already stored in"),
    ],
)
def test_bad_pictures_are_refused(tmp_path: Path, bad: Picture, message: str) -> None:
    writer = ShardWriter(tmp_path, MADE)
    writer.add(picture(9))
    with pytest.raises(BadInput, match=rf"^picture {bad.name}: .*{message}"):
        writer.add(bad)
    assert writer.finish([line(image="images/9.jpg")]) == 0
    assert len(ShardSource(tmp_path)) == 1


def test_lines_of_pictures_without_regions(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MADE)
    writer.add(picture(0))
    lines = [line(key="k", image="images/0.jpg"), line(key="m", image="images/none.jpg")]
    with pytest.raises(BadInput, match=r"line m names picture images/none\.jpg, which has no regions$"):
        writer.finish(lines)
    with pytest.raises(BadInput, match=r"not finished \(1 pictures so far, no captions\)"):
        ShardSource(tmp_path)
    assert writer.finish(lines, on_missing="skip") == 1
    assert ShardIndex.read(tmp_path).left_out == 1
    assert len(ShardSource(tmp_path)) == 1


def test_another_extractor_may_not_go_on(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(BadInput, match="begun with extractor 'tester', now 'other'; use another folder"):
        ShardWriter(tmp_path, dataclasses.replace(MADE, extractor="other"))
    with pytest.raises(BadInput, match=r"begun with settings {'side': '32'}, now {'side': '64'}"):
        ShardWriter(tmp_path, dataclasses.replace(MADE, settings={"side": "64"}))


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    path = shards(tmp_path) / "shard-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ShardSource(tmp_path)
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors: its bytes have changed: sha256 [0-9a-f]{16}\.\., "):
        ShardSource(tmp_path, verify=True)
    path.write_bytes(whole[:-1])
    with pytest.raises(
        BadInput, match=rf"shard-00001\.safetensors: {len(whole) - 1} bytes, shards\.json says {len(whole)}"
    ):
        ShardSource(tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors: no such file, but shards\.json lists it"):
        ShardSource(tmp_path)
    path.write_bytes(whole)
    names = tmp_path / "shard-00001.json"
    names.write_text(names.read_text().replace("images/3", "images/x"))
    with pytest.raises(BadInput, match=r"shard-00001\.json: its bytes have changed"):
        ShardSource(tmp_path, verify=True)
    with pytest.raises(BadInput, match=r"pairs\.jsonl, line 4: picture images/3\.jpg is in none of the shards"):
        ShardSource(tmp_path)
    assert len(ShardSource(tmp_path, on_error="skip").skipped) == 1


def test_a_broken_index(tmp_path: Path) -> None:
    shards(tmp_path)
    index = tmp_path / "shards.json"
    tree = json.loads(index.read_text())
    for change in ({"version": 2}, {"format": "other"}, {"shards": [{}]}, {"surprise": 1}, {"provenance": {}}):
        index.write_text(json.dumps({**tree, **change}))
        with pytest.raises(BadInput, match=r"shards\.json: not an index of region shards"):
            ShardSource(tmp_path)
    index.write_text("{")
    with pytest.raises(BadInput, match=r"shards\.json: not an index of region shards: Expecting"):
        ShardSource(tmp_path)


def test_provenance_there_and_back(tmp_path: Path) -> None:
    made = Provenance("x", 3, "w", ("bg", "狗"), settings={"a": "b"})
    ShardWriter(tmp_path, made).finish([])
    assert ShardIndex.read(tmp_path).provenance == made
