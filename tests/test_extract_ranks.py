"""Extraction shared out over processes: the same pictures and lines as by one, after a kill and with another number of processes too."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intarsia.data.formats.shard_files import ShardIndex
from intarsia.data.formats.shards import ShardSource, ShardWriter
from intarsia.errors import BadInput
from intarsia.extract import _batches, _open, extract
from intarsia.features import open_extractor

sys.path.insert(0, str(Path(__file__).parent / "train"))
from ranks import two_processes

PICTURES = 11


def picture(number: int) -> Any:
    image = np.full((60, 80, 3), 225, np.uint8)
    image[5 + 2 * number : 30 + 2 * number, 10:40] = np.random.default_rng(number).integers(0, 120, 3)
    return image


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder beside its data."""
    (tmp_path / "data/images").mkdir(parents=True)
    lines = []
    for number in range(PICTURES):
        Image.fromarray(picture(number)).save(tmp_path / f"data/images/{number}.png")
        lines.append(json.dumps({"key": f"k{number}", "image": f"images/{number}.png", "caption": f"box {number}"}))
    (tmp_path / "data/pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "out"


def run(out: Path, **more: Any) -> Any:
    options = {"batch": 2, "pictures_per_shard": 3, "show": False, "on_error": "skip"} | more
    return extract(out.parent / "data", out, open_extractor("pixels"), **options)


def share(rank: int, out: Path) -> None:
    """What each of two processes does."""
    from intarsia.train.parallel import enter_world

    with enter_world("cpu") as world:
        report = run(out, ranks=world)
    (out.parent / f"report-{rank}").write_text(repr((report.pictures, report.resumed, report.regions, report.skipped)))


def contents(out: Path) -> dict[str, Any]:
    """All that a reader sees, by key."""
    source = ShardSource(out, verify=True)
    samples = [source[i] for i in range(len(source))]
    return {x.key: (x.texts, *(a.tolist() for a in (x.pictures[0].features, x.pictures[0].boxes))) for x in samples}


def test_two_processes_make_what_one_makes(out: Path, tmp_path: Path) -> None:
    (out.parent / "data/images/4.png").write_bytes(b"broken")
    alone = run(tmp_path / "alone")
    two_processes(share, out)
    found = contents(out)
    assert len(found) == PICTURES - 1
    assert found == contents(tmp_path / "alone")
    assert sorted(x.name for x in out.glob("part-*")) == []
    assert [x.pictures for x in ShardIndex.read(out).shards] == [3, 2, 3, 2]  # 0: 0 1 4x 5 8 9; 1: 2 3 6 7 10
    told = {(out.parent / f"report-{rank}").read_text() for rank in range(2)}
    assert told == {repr((PICTURES - 1, 0, alone.regions, alone.skipped))}
    assert "4.png" in (out / "skipped.txt").read_text()


SHARE = """
import sys, time
from intarsia.extract import extract
from intarsia.features import open_extractor
from intarsia.train.parallel import enter_world
inner = open_extractor("pixels")
class Slow:
    name, provenance, by_shape = inner.name, inner.provenance, False
    def __call__(self, images):
        time.sleep(0.3)
        return inner(images)
with enter_world("cpu") as world:
    extract(sys.argv[1], sys.argv[2], Slow(), batch=1, pictures_per_shard=2, show=False, ranks=world)
"""


def test_two_processes_killed_go_on_with_one(out: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    about = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    about |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", SHARE, str(out.parent / "data"), str(out)]
    processes = [
        subprocess.Popen(command, env=os.environ | about | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        while not all((out / f"part-{rank}/shards.json").exists() for rank in range(2)):
            assert all(x.poll() is None for x in processes), "ended before each wrote a shard"
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not (out / "pairs.jsonl").exists()
    report = run(out, batch=1, pictures_per_shard=2)
    assert 4 <= report.resumed < PICTURES
    run(tmp_path / "alone")
    assert contents(out) == contents(tmp_path / "alone")


def test_parts_of_a_killed_run_are_taken_over(out: Path, tmp_path: Path) -> None:
    class Second:
        rank, size = 1, 3

        def gather(self, value: Any) -> Any:
            raise KeyboardInterrupt

        def on_first(self, work: Any) -> Any:
            return frozenset()

    with pytest.raises(KeyboardInterrupt):
        run(out, ranks=Second())
    assert [x.name for x in out.iterdir()] == ["part-1"]
    assert sum(x.pictures for x in ShardIndex.read(out / "part-1").shards) == 4
    report = run(out)
    assert (report.pictures, report.resumed) == (PICTURES, 4)
    run(tmp_path / "alone")
    assert contents(out) == contents(tmp_path / "alone")


def test_killed_while_taking_over_nothing_comes_twice(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(out)
    names = {x: (out / f"{x.name}.json").read_bytes() for x in ShardIndex.read(out).shards}
    out.rename(out.parent / "made")
    about = ShardIndex.read(out.parent / "made").provenance
    writer = ShardWriter(out, about)
    (out.parent / "made").rename(out / "part-0")
    real = os.link
    calls: list[int] = []

    def link(a: Any, b: Any) -> None:
        calls.append(1)
        if len(calls) == 4:  # the second shard's names
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        writer.take_over(out / "part-0")
    monkeypatch.undo()
    assert len(ShardIndex.read(out).shards) == 1
    again = ShardWriter(out, about)
    again.take_over(out / "part-0")
    assert [(out / f"{x.name}.json").read_bytes() for x in ShardIndex.read(out).shards] == list(names.values())
    assert again.done() == {f"images/{i}.png" for i in range(PICTURES)}


def test_parts_of_another_extractor_are_refused(out: Path) -> None:
    run(out)
    out.rename(out.parent / "made")
    out.mkdir()
    (out.parent / "made").rename(out / "part-0")
    with pytest.raises(BadInput, match=r"part-0: begun with extractor 'pixels', now 'grid'"):
        extract(out.parent / "data", out, open_extractor("grid", device="cpu"), show=False)
    assert (out / "part-0/shards.json").exists()


def test_pictures_of_one_shape_meet(tmp_path: Path) -> None:
    shapes = [(40, 60), (60, 40), (40, 60), (50, 50), (60, 40), (80, 120)]
    for number, (high, wide) in enumerate(shapes):
        Image.fromarray(np.zeros((high, wide, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "6.png").write_bytes(b"broken")
    pictures = _open(tmp_path, "skip")
    assert [list(x) for x in _batches(pictures, 3, by_shape=False)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(x) for x in _batches(pictures, 3, by_shape=True)] == [[6, 1, 4], [3, 0, 2], [5]]
