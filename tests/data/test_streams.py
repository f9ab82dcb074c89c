"""Tars and tables, local and remote: the same order and bits for any workers and ranks, also where a run goes on amid an epoch."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from pair_makers import jpeg
from toy import toy

from intarsia.batch import Sample
from intarsia.data.check import check, inspect
from intarsia.data.decode import decode_image
from intarsia.data.formats.files import RandomAccess
from intarsia.data.formats.tar import write_tar
from intarsia.data.loader import Plan, Prepare, load, measure, requests
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.recipe import Batching
from intarsia.train.parallel import weightless

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
LAYOUT = weightless(toy())
WORDS = ("cat", "red dog", "blue cat on mat", "the tree", "a sky on the mat")
FRESH = count()


class WithRegions:
    """Adds what the toy system reads, made of the pixels that the source finds, so that batches tell which were read."""

    provenance = None

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        from dataclasses import replace

        sample = self.source[index]
        pixels = decode_image(sample.pictures[0].path)
        features = pixels.reshape(-1, 3)[:: 1 + len(sample.texts[0])][:2].astype(np.float32) / 255
        boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]], np.float32)
        return replace(sample, pictures=(replace(sample.pictures[0], features=features, boxes=boxes),))


def caption(number: int) -> str:
    return WORDS[number % len(WORDS)]


def tars(root: Path) -> None:
    root.mkdir()
    for part in range(3):
        numbers = range(part * 8, part * 8 + 8)
        samples = [(f"{i:05}", {"captions": [caption(i)]}, [("jpg", jpeg(i))], []) for i in numbers]
        write_tar(root / f"{part}.tar", samples)


def tables(root: Path) -> None:
    root.mkdir()
    for part in range(3):
        numbers = range(part * 8, part * 8 + 8)
        table = pa.table({"jpg": [jpeg(i) for i in numbers], "caption": [caption(i) for i in numbers]})
        pq.write_table(table, root / f"{part}.parquet", row_group_size=3)


def uploaded(root: Path) -> str:
    where = f"memory://streams{next(FRESH)}"
    system = fsspec.filesystem("memory")
    for file in root.iterdir():
        if file.suffix in (".tar", ".parquet"):
            system.pipe_file(f"{where}/{file.name}", file.read_bytes())
    return where


def tensors(value: Any) -> list[torch.Tensor]:
    match value:
        case torch.Tensor():
            return [value]
        case dict():
            return [x for key in sorted(value) for x in tensors(value[key])]
        case _ if hasattr(value, "__dataclass_fields__"):
            return [x for name in value.__dataclass_fields__ for x in tensors(getattr(value, name))]
        case _:
            return []


def bits(item: Any) -> tuple[Any, ...]:
    arrays = tuple(x.contiguous().numpy().tobytes() for x in tensors(item.batch))
    return item.number, item.epoch, item.batch.keys, arrays


def rows_of(sample: Sample) -> tuple[int, int]:
    return int(LAYOUT.lay_out(sample).rows), 0


@pytest.mark.parametrize("make", [tars, tables])
def test_order_and_bits_do_not_depend_on_workers_ranks_or_where_it_goes_on(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "data")
    local, remote = (WithRegions(open_source(x)) for x in (tmp_path / "data", uploaded(tmp_path / "data")))
    assert len(local) == len(remote) == 24
    rows = measure(local, partial(rows_of)).rows
    steps = 8

    def made(source: Any, workers: int = 0, first: int = 0, rank: int = 0, world: int = 1) -> list[Any]:
        plan = Plan(rows, Batching(rows=24, window=10), 3)
        span = range(first // world, steps // world)
        wanted = requests(plan, lambda step: "mlm", span, number=first, rank=rank, world=world)
        prepare = Prepare(source, LAYOUT, np.arange(24), 3)
        return [bits(x) for x in load(wanted, prepare, workers=workers)]

    whole = made(local)
    assert len({x[3] for x in whole}) == steps
    for workers in (1, 2, 4):
        assert made(local, workers) == whole
    assert made(remote) == whole
    assert made(remote, 2) == whole
    assert len(Plan(rows, Batching(rows=24, window=10), 3).epoch(0)) > 4  # so that this is amid the first epoch
    for source, workers in ((local, 0), (local, 2), (remote, 0)):
        assert made(source, workers, first=4) == whole[4:]
    for world in (2, 4):
        ranks = [made(local, 0, 4, rank, world) for rank in range(world)]
        assert [x for together in zip(*ranks, strict=True) for x in together] == whole[4:]


def test_remote_errors_name_the_address(tmp_path: Path) -> None:
    tars(tmp_path / "data")
    where = uploaded(tmp_path / "data")
    system = fsspec.filesystem("memory")
    cut = (tmp_path / "data" / "0.tar").read_bytes()[:3000]
    system.pipe_file(f"{where}/0.tar", cut)
    with pytest.raises(BadInput, match=r"memory:/+streams\d+/0\.tar: not a whole, uncompressed tar"):
        open_source(where)
    assert len(open_source(where, on_error="skip")) == 16
    assert len(open_source(f"{where}/1.tar")) == 8
    with pytest.raises(BadInput, match=r"1\.tar: ends after"):
        RandomAccess(f"{where}/1.tar").read(10**6, 5)
    with pytest.raises(BadInput, match="no .tar, .parquet or .arrow file there"):
        open_source("memory://nothing-here")
    with pytest.raises(BadInput, match="nowhere"):
        open_source("nowhere://x.tar")


def test_a_remote_data_set_is_inspected_and_checked(tmp_path: Path) -> None:
    tables(tmp_path / "data")
    where = uploaded(tmp_path / "data")
    assert (check(where).usable, inspect(where).with_pixels) == (24, 24)
