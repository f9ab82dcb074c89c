"""How fast training data is read, on one core: `python benchmarks/data.py` (needs the "bench" extra).

Features: 36 regions of 2048 numbers a picture, float16, rectified noise like real ones; from a warm page cache, in
random order, into one packed batch of 64 pictures. Pictures: photo-like noise (spectrum 1/f), 640x480, JPEG quality
92, decoded and resized to a short side of 384. Everything alternates in one process; figures are medians over rounds
of processor time, the first round left out.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from PIL import Image

from intarsia.batch import Example, Picture, RegionRows
from intarsia.data.decode import decode_image, resize_short
from intarsia.data.formats.butd_tsv import ButdTsv, butd_line
from intarsia.data.formats.npz import inflate
from intarsia.data.formats.shards import ShardSource, ShardWriter
from intarsia.data.formats.store import RegionStore, b64decode
from intarsia.data.formats.uniter_lmdb import UniterLmdb
from intarsia.data.source import Provenance
from intarsia.data.store_writers import LmdbWriter
from intarsia.pack import pack

PICTURES, REGIONS, WIDTH, BATCH = 448, 36, 2048, 64
OTHERS = 96
PHOTOS, HEIGHT, LENGTH, SIDE = 16, 480, 640, 384
ROUNDS = 7


def measure(variants: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Items a second of each variant, in turn within each round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS + 1):
        for name, run in variants.items():
            start = time.process_time()
            items = run()
            seconds[name].append((time.process_time() - start) / items)
    return {name: 1 / float(np.median(taken[1:])) for name, taken in seconds.items()}


def show(title: str, rates: dict[str, float], base: str) -> None:
    """Prints a table; the last column is relative to `base`."""
    print(f"\n{title}\n{'':<58}{'per second':>12}{'relative':>10}")
    for name, rate in rates.items():
        print(f"{name:<58}{rate:>12,.0f}{rate / rates[base]:>9.2f}x")


def make_pictures() -> list[Picture]:
    """Pictures with features as sparse as real ones."""
    made = []
    for number in range(PICTURES):
        rng = np.random.default_rng([number, 0xBE])
        features = np.maximum(rng.standard_normal((REGIONS, WIDTH), dtype=np.float32) + 0.36, 0).astype(np.float16)
        low = rng.random((REGIONS, 2), dtype=np.float32) / 2
        boxes = np.concatenate([low, low + 0.3], axis=1)
        scores = rng.random(REGIONS, dtype=np.float32)
        made.append(Picture(f"images/{number}.jpg", features, boxes, LENGTH, HEIGHT, scores))
    return made


def write_lmdb(root: Path, pictures: Sequence[Picture]) -> lmdb.Environment:
    """The layout of UNITER's compressed feature databases: one compressed .npz a picture."""
    store = lmdb.open(str(root), map_size=2**31)
    with store.begin(write=True) as transaction:
        for picture in pictures:
            buffer = io.BytesIO()
            boxes = np.concatenate([picture.boxes, picture.boxes[:, 2:] - picture.boxes[:, :2]], axis=1)
            np.savez_compressed(
                buffer, features=picture.features, norm_bb=boxes.astype(np.float16), conf=picture.scores
            )
            transaction.put(picture.name.encode(), buffer.getvalue())
    return store


def rows_of(features: Any, boxes: Any) -> RegionRows:
    """The region rows of a picture with nothing hidden."""
    count = len(boxes)
    zeros = np.zeros(count, np.int64)
    return RegionRows(features, boxes, zeros, np.arange(count), zeros, np.zeros(count, bool))


def features_table(root: Path) -> None:
    """Feature stores to packed batches."""
    pictures = make_pictures()
    writer = ShardWriter(root / "shards", Provenance("noise", WIDTH), pictures_per_shard=128)
    for picture in pictures:
        writer.add(picture)
    writer.finish({"image": x.name, "caption": "a dog on a sofa looks at the camera"} for x in pictures)
    source = ShardSource(root / "shards")
    store = write_lmdb(root / "lmdb", pictures)
    reader = store.begin(buffers=True)
    order = np.random.default_rng(0).permutation(PICTURES)
    batches = [order[at : at + BATCH] for at in range(0, PICTURES, BATCH)]
    names = [x.name.encode() for x in pictures]
    plain = [x.features for x in pictures]

    def copies() -> int:
        return sum(len(np.concatenate([plain[i] for i in batch])) // REGIONS for batch in batches)

    def gather() -> int:
        return sum(source.gather(batch.tolist()).packing.documents for batch in batches)

    def packed() -> int:
        done = 0
        for batch in batches:
            samples = [source[int(i)] for i in batch]
            examples = [Example(x.key, regions=rows_of(x.pictures[0].features, x.pictures[0].boxes)) for x in samples]
            done += len(pack(examples).keys)
        return done

    def compressed() -> int:
        done = 0
        for batch in batches:
            examples = []
            for i in batch:
                with np.load(io.BytesIO(reader.get(names[i])), allow_pickle=False) as entry:
                    rows = rows_of(entry["features"], entry["norm_bb"][:, :4].astype(np.float32))
                examples.append(Example(str(i), regions=rows))
            done += len(pack(examples).keys)
        return done

    theirs = "UNITER's layout: LMDB of compressed .npz, np.load, pack"
    rates = measure(
        {
            theirs: compressed,
            "region shards: samples with captions, pack": packed,
            "region shards: gather": gather,
            "the copy alone, from memory (what no reader can beat)": copies,
        }
    )
    show(f"Pictures into packed batches of {BATCH} ({REGIONS} x {WIDTH} float16)", rates, theirs)
    ours = rates["region shards: gather"]
    print(f"bars: 60,000 a second, 10x; {'met' if ours >= max(60_000, 10 * rates[theirs]) else 'NOT met'}")


def write_tsv(path: Path, pictures: Sequence[Picture]) -> None:
    """The layout of bottom-up attention: base64 of float32, a picture a line."""
    with open(path, "wb") as handle:
        for picture in pictures:
            handle.write(butd_line(picture))


def layouts_table(root: Path) -> None:
    """Other projects' layouts at random, read as their code reads them and by ours."""
    pictures = make_pictures()[:OTHERS]
    write_tsv(root / "butd.tsv", pictures)
    for layout in ("uniter", "uniter-npz"):
        with LmdbWriter(root / layout, layout) as writer:
            for picture in pictures:
                writer.add(picture)
            writer.finish()
    tsv, msgpack, npz = ButdTsv(root / "butd.tsv"), UniterLmdb(root / "uniter"), UniterLmdb(root / "uniter-npz")
    order = np.random.default_rng(0).permutation(OTHERS).tolist()
    csv.field_size_limit(sys.maxsize)
    fields = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]

    def dict_reader() -> int:
        done = 0
        with open(root / "butd.tsv") as handle:
            for row in csv.DictReader(handle, fields, delimiter="\t"):
                count = int(row["num_boxes"])
                boxes, features = (
                    np.frombuffer(base64.b64decode(row[x]), np.float32).reshape(count, -1) for x in fields[4:]
                )
                done += len(boxes) == len(features)
        return done

    def numpy_load() -> int:
        done = 0
        for i in order:
            with np.load(io.BytesIO(npz.file.get(npz.names[i].encode())), allow_pickle=False) as entry:
                done += len(entry["features"]) == len(entry["norm_bb"]) == len(entry["conf"])
        return done

    def ours(store: RegionStore) -> Callable[[], int]:
        return lambda: sum(len(store.picture(i).features) > 0 for i in order)

    old, ours_tsv = "TSV in order: csv.DictReader, base64 (LXMERT)", "TSV at random: ButdTsv"
    rates = measure({old: dict_reader, ours_tsv: ours(tsv)})
    show(f"Bottom-up attention TSV, pictures of {REGIONS} x {WIDTH} float32", rates, old)
    print(
        f"bar: 6x; {'met' if rates[ours_tsv] >= 6 * rates[old] else 'NOT met'} ({'with' if fast(b64decode) else 'without'} pybase64)"
    )
    old, ours_npz = "compressed .npz: np.load (UNITER)", "compressed .npz: UniterLmdb"
    rates = measure({old: numpy_load, ours_npz: ours(npz), "msgpack: UniterLmdb": ours(msgpack)})
    show(f"UNITER LMDB at random, pictures of {REGIONS} x {WIDTH} float16", rates, old)
    print(
        f"bar: 2x; {'met' if rates[ours_npz] >= 2 * rates[old] else 'NOT met'} ({'with' if fast(inflate) else 'without'} isal)"
    )


def fast(function: Any) -> bool:
    """Whether a function is of a faster package than Python's own."""
    return str(function.__module__).startswith(("pybase64", "isal"))


def photo(seed: int) -> Any:
    """A picture (480, 640, 3) uint8 with the spectrum of photographs."""
    rng = np.random.default_rng([seed, 0x0F])
    radius = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(LENGTH)[None])
    amplitude = 1 / np.maximum(radius, 1 / LENGTH)
    phase = np.exp(2j * np.pi * rng.random((3, *amplitude.shape)))
    planes = np.fft.irfft2(amplitude * (phase[:1] + 0.3 * phase), s=(HEIGHT, LENGTH))
    planes = (planes - planes.mean()) / planes.std() * 50 + 128
    return np.clip(planes.transpose(1, 2, 0), 0, 255).astype(np.uint8)


def pixels_table() -> None:
    """JPEG bytes to resized pixels."""
    files = []
    for seed in range(PHOTOS):
        buffer = io.BytesIO()
        Image.fromarray(photo(seed)).save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    size = (round(LENGTH * SIDE / HEIGHT), SIDE)

    def with_pillow(data: bytes) -> Any:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))

    def with_ours(data: bytes) -> Any:
        return resize_short(decode_image(data), SIDE)

    theirs = "Pillow: decode, bicubic"
    rates = measure(
        {
            theirs: lambda: sum(len(with_pillow(x)) > 0 for x in files),
            "decode_image, resize_short": lambda: sum(len(with_ours(x)) > 0 for x in files),
            "Pillow: decode": lambda: sum(len(np.asarray(Image.open(io.BytesIO(x)))) > 0 for x in files),
            "decode_image": lambda: sum(len(decode_image(x)) > 0 for x in files),
        }
    )
    title = f"JPEG {LENGTH}x{HEIGHT} ({np.mean([len(x) for x in files]) / 1000:.0f} kB) to short side {SIDE}"
    show(title, rates, theirs)
    print(f"bar: 2x; {'met' if rates['decode_image, resize_short'] >= 2 * rates[theirs] else 'NOT met'}")
    differences = [np.abs(with_ours(x).astype(int) - with_pillow(x)) for x in files]
    worst = max(x.mean() for x in differences)
    print(f"difference to Pillow: mean at most {worst:.3f} of 255, greatest {max(x.max() for x in differences)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        features_table(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        layouts_table(Path(folder))
    pixels_table()
