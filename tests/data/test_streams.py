"""Every kind of data set, local and remote: the same order and bits for any workers and ranks, also where a run goes on amid an epoch."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from pair_makers import jpeg
from test_tfrecord import write as write_records
from test_uniter_text import by_hand, database
from test_uniter_text import numbers as msgpack_numbers
from test_uniter_text import text as msgpack_text
from toy import toy

from intarsia.batch import Picture, Sample
from intarsia.data.check import check, inspect
from intarsia.data.decode import decode_image
from intarsia.data.formats.files import RandomAccess
from intarsia.data.formats.films import FilmRecord, FilmWriter, Track
from intarsia.data.formats.shards import ShardWriter
from intarsia.data.loader import Plan, Prepare, load, measure, requests
from intarsia.data.opening import open_source
from intarsia.data.source import Provenance
from intarsia.data.subtitles import Sentence
from intarsia.errors import BadInput
from intarsia.recipe import Batching
from intarsia.train.parallel import weightless

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
LAYOUT = weightless(toy())
WORDS = ("cat", "red dog", "blue cat on mat", "the tree", "a sky on the mat")
FRESH = count()
BOXES = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]], np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))


class WithRegions:
    """Adds what the toy system reads, made of the pixels that the source finds (else of the picture's name), so that batches tell which were read."""

    provenance = None

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        if sample.film is not None:
            picture = Picture(sample.film.name, sample.film.features[:2].astype(np.float32), BOXES, 40, 30)
            return replace(sample, texts=sample.texts[:1], pictures=(picture,), film=None)
        picture = sample.pictures[0]
        if len(picture.features):
            return sample  # type: ignore[no-any-return]
        if picture.path:
            features = (
                decode_image(picture.path).reshape(-1, 3)[:: 1 + len(sample.texts[0])][:2].astype(np.float32) / 255
            )
        else:
            features = np.random.default_rng(zlib.crc32(picture.name.encode())).random((2, 3)).astype(np.float32)
        return replace(sample, pictures=(replace(picture, features=features, boxes=BOXES),))


def caption(number: int) -> str:
    return WORDS[number % len(WORDS)]


def pairs(root: Path, numbers: range = range(24)) -> str:
    (root / "images").mkdir(parents=True)
    lines = []
    for i in numbers:
        (root / f"images/{i}.jpg").write_bytes(jpeg(i))
        lines.append(json.dumps({"key": f"k{i}", "image": f"images/{i}.jpg", "caption": caption(i)}))
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return ""


def tars(root: Path, numbers: range = range(24)) -> str:
    """As img2dataset leaves them."""
    root.mkdir(parents=True)
    for part in range(0, len(numbers), 8):
        with tarfile.open(root / f"{part // 8:05}.tar", "w") as archive:
            for i in numbers[part : part + 8]:
                key = f"{part // 8:05}{i:04}"
                said = {"caption": caption(i), "url": "u", "key": key, "status": "success", "error_message": None}
                members = {"jpg": jpeg(i), "txt": caption(i).encode(), "json": json.dumps(said).encode()}
                for kind, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return ""


def tables(root: Path, numbers: range = range(24)) -> str:
    root.mkdir(parents=True)
    for part in range(0, len(numbers), 8):
        here = numbers[part : part + 8]
        table = pa.table({"jpg": [jpeg(i) for i in here], "caption": [caption(i) for i in here]})
        pq.write_table(table, root / f"{part // 8}.parquet", row_group_size=3)
    return ""


def shards(root: Path, numbers: range = range(24)) -> str:
    writer = ShardWriter(root, Provenance("toy", 3), pictures_per_shard=5)
    for i in numbers:
        features = np.random.default_rng(i).random((2, 3)).astype(np.float32)
        writer.add(Picture(f"{i}.jpg", features, BOXES, 40, 30))
    writer.finish({"key": f"k{i}", "image": f"{i}.jpg", "caption": caption(i)} for i in numbers)
    return ""


def captions(root: Path, numbers: range = range(24)) -> str:
    """CC12M."""
    root.mkdir(parents=True)
    lines = (f"http://pictures.test/{i}.jpg\t{caption(i)}" for i in numbers)
    (root / "cc12m.tsv").write_text("\n".join(lines) + "\n")
    return "/cc12m.tsv"


def aligned(root: Path, numbers: range = range(24)) -> str:
    """SBU's two files."""
    root.mkdir(parents=True)
    (root / "sbu_urls.txt").write_text("".join(f"http://pictures.test/{i}.jpg\n" for i in numbers))
    (root / "sbu_captions.txt").write_text("".join(f"{caption(i)}\n" for i in numbers))
    return "/sbu_urls.txt"


def tree(root: Path, numbers: range = range(24)) -> str:
    """Karpathy's JSON, its pictures beside it."""
    pairs(root, numbers)
    (root / "pairs.jsonl").unlink()
    said = [{"sentences": [{"raw": caption(i)}], "filename": f"{i}.jpg", "imgid": i, "split": "train"} for i in numbers]
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": said}))
    return "/dataset_flickr30k.json"


KINDS = (pairs, tars, tables, shards, captions, aligned, tree)
MIXTURES = ((pairs, tars), (captions, tables, pairs))


def uploaded(root: Path) -> str:
    where = f"memory://streams{next(FRESH)}"
    system = fsspec.filesystem("memory")
    for file in root.rglob("*"):
        if file.is_file() and not file.name.endswith(".index.npz"):
            system.pipe_file(f"{where}/{file.relative_to(root).as_posix()}", file.read_bytes())
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


BATCHING = Batching(rows=24, window=10)


def same_for_everyone(
    local: Any, remote: Any, batching: Batching = BATCHING, some: tuple[int, ...] = (1, 2, 4)
) -> None:
    """The same bits from `some` numbers of workers, in as many processes, from the start and from amid the first epoch."""
    local, remote = WithRegions(local), WithRegions(remote)
    assert len(local) == len(remote) == 24
    rows = measure(local, partial(rows_of)).rows
    steps = 12

    def made(source: Any, workers: int = 0, first: int = 0, rank: int = 0, world: int = 1) -> list[Any]:
        plan = Plan(rows, batching, 3)
        span = range(first // world, steps // world)
        wanted = requests(plan, lambda step: "itm", span, number=first, rank=rank, world=world)
        prepare = Prepare(source, LAYOUT, np.arange(24), 3, batching.block)
        return [bits(x) for x in load(wanted, prepare, workers=workers)]

    whole = made(local)
    assert len({x[3] for x in whole[:4]}) == 4
    epoch = len(Plan(rows, batching, 3).epoch(0))
    assert 4 < epoch < steps  # so that 4 is amid the first epoch and the last is in the second
    assert sorted(key for x in whole[:epoch] for key in x[2]) == sorted(local[i].key for i in range(24))
    for workers in some:
        assert made(local, workers) == whole
    assert made(local, some[-1], first=4) == whole[4:]
    assert made(remote) == whole
    assert made(remote, 2, first=4) == whole[4:]
    for world in some:
        for source, workers, first in ((local, 0, 0), (local, int(world == 2), 4), (remote, 0, 4)):
            ranks = [made(source, workers, first, rank, world) for rank in range(world)]
            assert [x for together in zip(*ranks, strict=True) for x in together] == whole[first:]


@pytest.mark.parametrize("make", KINDS)
def test_order_and_bits_do_not_depend_on_workers_ranks_or_where_it_goes_on(
    make: Callable[[Path], str], tmp_path: Path
) -> None:
    file = make(tmp_path / "data")
    local, remote = open_source(f"{tmp_path / 'data'}{file}"), open_source(uploaded(tmp_path / "data") + file)
    assert type(local) is type(remote)
    same_for_everyone(local, remote)


def uniter(root: Path, numbers: range = range(24)) -> str:
    """UNITER's text database: pieces and their vocabulary."""
    root.mkdir(parents=True)
    words = sorted({word for text in WORDS for word in text.split()})
    (root / "vocab.txt").write_text("\n".join([*"abcde", *words]) + "\n")
    examples = {}
    for i in numbers:
        ids = [5 + words.index(word) for word in caption(i).split()]
        examples[f"k{i}"] = by_hand({"input_ids": msgpack_numbers(ids), "img_fname": msgpack_text(f"{i}.npz")})
    meta = {"CLS": 2, "SEP": 3, "MASK": 4, "UNK": 1, "v_range": [5, 5 + len(words)], "tokenizer": "bert-base-cased"}
    database(root, "itm_coco_train.db", examples, meta=meta)
    return "/itm_coco_train.db"


def arrow(root: Path, numbers: range = range(24)) -> str:
    """ViLT's file of Arrow's."""
    root.mkdir(parents=True)
    rows = {"image": [jpeg(i) for i in numbers], "caption": [[caption(i)] for i in numbers]}
    table = pa.table(rows | {"image_id": [f"{i}.jpg" for i in numbers], "split": ["train"] * len(numbers)})
    path = str(root / "coco_caption_karpathy_train.arrow")
    with pa.OSFile(path, "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return "/coco_caption_karpathy_train.arrow"


def fashion(root: Path, numbers: range = range(24)) -> str:
    h5py = pytest.importorskip("h5py")
    root.mkdir(parents=True)
    with h5py.File(root / "fashiongen_256_256_train.h5", "w") as file:
        file["input_image"] = np.random.default_rng(0).integers(0, 256, (len(numbers), 8, 8, 3), np.uint8)
        file["input_description"] = np.array([[caption(i).encode()] for i in numbers])
        for name in ("category", "subcategory", "productID"):
            file[f"input_{name}"] = np.array([[b"x"] for _ in numbers])
    return "/fashiongen_256_256_train.h5"


def asked(root: Path, numbers: range = range(24)) -> str:
    """B2T2's records, in two files."""
    root.mkdir(parents=True)
    words = ["[PAD]", "[CLS]", "[IMAGE]", "[SEP]", *sorted({word for text in WORDS for word in text.split()})]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    for part in range(2):
        rows = []
        for i in numbers[part * 12 : part * 12 + 12]:
            ids = [words.index(x) for x in f"[CLS] [IMAGE] {caption(i)} [SEP] cat [SEP]".split()]
            fields = {"image": jpeg(i), "annot_id": [i], "img_id": [i], "choice_id": [0], "label": [1]}
            rows.append(fields | {"input_ids": ids, "bbox_pos": [0, 0, 1, 1], "bbox_idx": [-1] * len(ids)})
        write_records(root / f"vcr-train-{part:05}-of-00002", rows)
    return ""


def films(root: Path, numbers: range = range(24)) -> str:
    """Film shards, a passage a film."""
    writer = FilmWriter(root, Provenance("s3d", 3, settings={"fps": "20", "frames": "30"}), films_per_shard=5)
    for i in numbers:
        said = (Track("en", (Sentence(caption(i), 0.0, 3.0),)),)
        writer.add(FilmRecord(f"{i}.mp4", 3.0, np.random.default_rng(i).random((2, 3)), np.arange(2) * 1.5, said))
    writer.finish()
    return ""


@pytest.mark.parametrize("make", [uniter, arrow, fashion, asked, films])
def test_nor_do_those_of_other_projects_stores(make: Callable[[Path], str], tmp_path: Path) -> None:
    file = make(tmp_path / "data")
    local, remote = open_source(f"{tmp_path / 'data'}{file}"), open_source(uploaded(tmp_path / "data") + file)
    assert type(local) is type(remote)
    same_for_everyone(local, remote, some=(2, 4))


@pytest.mark.parametrize("makes", MIXTURES)
def test_nor_do_those_of_mixtures(makes: Any, tmp_path: Path) -> None:
    numbers = [range(k * 24 // len(makes), (k + 1) * 24 // len(makes)) for k in range(len(makes))]
    files = [make(tmp_path / make.__name__, some) for make, some in zip(makes, numbers, strict=True)]
    where = uploaded(tmp_path)
    local, remote = (
        ",".join(f"{root}/{make.__name__}{file}" for make, file in zip(makes, files, strict=True))
        for root in (tmp_path, where)
    )
    same_for_everyone(open_source(local), open_source(remote))


@pytest.mark.parametrize("make", [tars, shards])
def test_nor_do_those_shuffled_in_blocks(make: Callable[[Path], str], tmp_path: Path) -> None:
    make(tmp_path / "data")
    batching = Batching(rows=24, window=10, block=5)
    same_for_everyone(open_source(tmp_path / "data"), open_source(uploaded(tmp_path / "data")), batching)


def test_remote_errors_name_the_address(tmp_path: Path) -> None:
    tars(tmp_path / "data")
    where = uploaded(tmp_path / "data")
    system = fsspec.filesystem("memory")
    cut = (tmp_path / "data" / "00000.tar").read_bytes()[:3000]
    system.pipe_file(f"{where}/00000.tar", cut)
    with pytest.raises(BadInput, match=r"memory:/+streams\d+/00000\.tar: not a whole, uncompressed tar"):
        open_source(where)
    assert len(open_source(where, on_error="skip")) == 16
    assert len(open_source(f"{where}/00001.tar")) == 8
    with pytest.raises(BadInput, match=r"00001\.tar: ends after"):
        RandomAccess(f"{where}/00001.tar").read(10**6, 5)
    with pytest.raises(BadInput, match="nothing there that can be opened"):
        open_source("memory://nothing-here")
    with pytest.raises(BadInput, match="nowhere"):
        open_source("nowhere://x.tar")


def test_a_remote_data_set_is_inspected_and_checked(tmp_path: Path) -> None:
    tables(tmp_path / "data")
    where = uploaded(tmp_path / "data")
    assert (check(where).usable, inspect(where).with_pixels) == (24, 24)
