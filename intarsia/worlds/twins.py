"""Generated twins of benchmarks: items about scenes, written in the published file format of each, with the regions of their pictures in shards.

Every twin of a benchmark has the files, names and fields that its reader reads, so that nothing is special about it. Pictures of training items come
before those of the others; no picture is on both sides. What a twin is worth is told by its chance level and by what the words alone reach.
"""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from intarsia.batch import Sample
from intarsia.data.formats.files import write_json, write_lines, write_whole
from intarsia.data.formats.shards import ShardWriter
from intarsia.errors import BadInput
from intarsia.worlds.questions import Question, ask, choose, compare, refer
from intarsia.worlds.render import outlines
from intarsia.worlds.source import WorldSource

SIDE = 200
"""Pixels of a picture as the files say; regions lie in it by fractions."""
THINGS = ("clock", "book", "tie", "scissors", "kite", "teddybear", "pizza", "donut")
"""What the twin of VCR, whose objects have COCO's names, calls each shape."""


@dataclass(frozen=True)
class Scenes:
    """The scenes of one split of a twin."""

    source: WorldSource
    numbers: range
    split: str
    """"train" or "val"; the reader of each benchmark has names of its own."""

    def box(self, index: int, thing: int) -> list[float]:
        """x, y, wide, high in pixels."""
        x1, y1, x2, y2 = (SIDE * v for v in self.source.scene(index).objects[thing].box)
        return [x1, y1, x2 - x1, y2 - y1]

    def rng(self, index: int, stream: int) -> np.random.Generator:
        """Random numbers of one scene."""
        return np.random.default_rng([self.source.seed, 0x7E1, index, stream])


Writer = Callable[[Path, list[Scenes]], dict[str, int]]
"""Writes the files and says which scene each picture shows."""


def write_twin(
    benchmark: str, out: Path | str, train: int, val: int, level: int = 1, seed: int = 0, pictures: bool = False
) -> Path:
    """Writes a twin: the benchmark's files, and region shards in `regions/`.

    Args:
        benchmark: one of `TWINS`, `PRODUCTS` or `twin_films.FILMS`.
        out: a folder, made if it is not there.
        train: scenes of the training split.
        val: scenes of the validation split.
        level: of the world; 0 = attribute features, for fast runs. Products and films have but one.
        seed: of the world.
        pictures: write the pictures too, to `images/`; of films there are none.

    Returns:
        The folder of the shards.

    Raises:
        BadInput: there is no such twin, or too few scenes, or the folder cannot be written.
    """
    from intarsia.worlds.source import WorldConfig
    from intarsia.worlds.twin_films import FILMS, write_films
    from intarsia.worlds.twin_products import write_fashiongen

    if benchmark not in (known := (*TWINS, *PRODUCTS, *FILMS)):
        raise BadInput(f"no twin of {benchmark!r} (there are {', '.join(known)})")
    if min(train, val) < 2 or (pictures and level == 0):
        raise BadInput(f"{out}: {train} and {val} scenes of level {level}; at least 2 each, and pictures need level 1")
    folder = Path(out)
    source = WorldSource(WorldConfig(level=level), "train", train + val, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if benchmark in PRODUCTS:
            return write_fashiongen(folder, train, val, seed, pictures)
        if benchmark in FILMS:
            return write_films(benchmark, folder, train, val, seed)
        names = TWINS[benchmark](
            folder, [Scenes(source, range(train), "train"), Scenes(source, range(train, train + val), "val")]
        )
        assert source.provenance is not None
        writer = ShardWriter(folder / "regions", source.provenance, "../images" if pictures else "")
        done = writer.done()
        for name, index in names.items():
            if name not in done:
                writer.add(replace(source[index].pictures[0], name=name, width=SIDE, height=SIDE))
            if pictures:
                with write_whole(folder / "images" / name) as part:
                    Image.fromarray(source.image(index)).resize((SIDE, SIDE)).save(part, "JPEG", quality=95)
        writer.finish(())
    except OSError as error:
        raise BadInput(f"{out}: {error}") from None
    return folder / "regions"


def _asked(scenes: Scenes, index: int) -> list[tuple[Question, Sample]]:
    kinds: tuple[Question, ...] = get_args(Question)
    return [(kind, x) for kind in kinds if (x := ask(scenes.source, index, kind)) is not None]


# --------------------------------------------------------------------------------------------------------------- answers


def _vqa(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    """Eight of ten people give the right answer, two another one."""
    names: dict[str, int] = {}
    for scenes in parts:
        name = f"{scenes.split}2014"
        asked, told = [], []
        for index in scenes.numbers:
            names[f"COCO_{name}_{index:012d}.jpg"] = index
            for number, (kind, sample) in enumerate(_asked(scenes, index)):
                key, answer = index * 1000 + number, sample.answers[0][0]
                asked.append({"image_id": index, "question": sample.texts[0], "question_id": key})
                other = {"yes": "no", "no": "yes"}.get(answer, "unsure")
                people = [answer] * 8 + [other] * 2
                told.append(
                    {
                        "image_id": index,
                        "question_id": key,
                        "question_type": " ".join(sample.texts[0].split()[:2]),
                        "answer_type": {"relation": "yes/no", "count": "number"}.get(kind, "other"),
                        "multiple_choice_answer": answer,
                        "answers": [
                            {"answer": x, "answer_confidence": "yes", "answer_id": i} for i, x in enumerate(people, 1)
                        ],
                    }
                )
        about = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": name, "license": {}}
        write_json(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", {**about, "questions": asked})
        write_json(folder / f"v2_mscoco_{name}_annotations.json", {**about, "annotations": told})
    return names


def _gqa(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    names: dict[str, int] = {}
    for scenes in parts:
        asked = {}
        for index in scenes.numbers:
            names[f"n{index}.jpg"] = index
            for kind, sample in _asked(scenes, index):
                answer, binary = sample.answers[0][0], kind == "relation"
                asked[f"{index:06d}{kind}"] = {
                    "imageId": f"n{index}",
                    "question": sample.texts[0],
                    "answer": answer,
                    "fullAnswer": answer,
                    "isBalanced": True,
                    "groups": {"global": None if binary else kind, "local": f"{index}-{kind}"},
                    "entailed": [],
                    "equivalent": [f"{index:06d}{kind}"],
                    "types": {
                        "structural": "verify" if binary else "query",
                        "semantic": "rel" if binary else "attr",
                        "detailed": kind,
                    },
                    "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
                    "semantic": [{"operation": "query", "argument": kind, "dependencies": []}],
                    "semanticStr": f"query: {kind}",
                }
        write_json(folder / f"{scenes.split}_balanced_questions.json", asked)
    return names


def _genome(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    scenes, rows, number = parts[0], [], 0
    for index in scenes.numbers:
        pairs = []
        for _, sample in _asked(scenes, index):
            number += 1
            pairs.append(
                {"qa_id": number, "question": sample.texts[0], "answer": f"{sample.answers[0][0].capitalize()}."}
            )
        rows.append({"id": index, "qas": pairs})
    write_json(folder / "question_answers.json", rows)
    return {f"{index}.jpg": index for scenes in parts for index in scenes.numbers}


# ------------------------------------------------------------------------------------------------------- true and false


def _nlvr2(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    names: dict[str, int] = {}
    for scenes in parts:
        split, rows = "dev" if scenes.split == "val" else "train", []
        for left in scenes.numbers[:-1]:
            right, pair = left + 1, f"{split}-{left}-0"
            sample = compare(scenes.source, left, right)
            if sample is None:
                continue
            names |= {f"{pair}-img0.png": left, f"{pair}-img1.png": right}
            rows.append(
                {
                    "identifier": f"{pair}-0",
                    "sentence": sample.texts[0],
                    "label": sample.answers[0][0].capitalize(),
                    "left_url": "",
                    "right_url": "",
                    "synset": "scene",
                    "directory": left % 100,
                    "validation": {},
                }
            )
        write_lines(folder / f"{split}.json", map(json.dumps, rows))
    return names


def _snli_ve(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    """True captions are entailed, false ones contradicted; neutral is what a picture cannot show, told of an object that is there."""
    names: dict[str, int] = {}
    for scenes in parts:
        rows = []
        for index in scenes.numbers:
            sample, names[f"{index}.jpg"] = scenes.source[index], index
            word = ("new", "heavy", "cold")[int(scenes.rng(index, 1).integers(3))]
            said = {
                "entailment": sample.texts[0],
                "contradiction": next(iter(sample.false_texts), None),
                "neutral": f"{refer(scenes.source, index).texts[0]} is {word}",
            }
            rows += [
                {
                    "Flikr30kID": f"{index}.jpg",
                    "captionID": f"{index}.jpg#0",
                    "pairID": f"{index}.jpg#0{label[0]}",
                    "sentence1": sample.texts[0],
                    "sentence2": text,
                    "gold_label": label,
                    "annotator_labels": [label],
                }
                for label, text in said.items()
                if text is not None
            ]
        write_lines(folder / f"snli_ve_{'dev' if scenes.split == 'val' else 'train'}.jsonl", map(json.dumps, rows))
    return names


def _vcr(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    """What stands beside an object; the reason is a true caption among false ones. The first object is a person to the file."""
    names: dict[str, int] = {}
    for scenes in parts:
        rows = []
        for index in scenes.numbers:
            sample, base = choose(scenes.source, index), scenes.source[index]
            if sample is None or len(base.false_texts) < 3:
                continue
            name, rng = f"scenes/{index:06d}", scenes.rng(index, 2)
            names[f"{name}.jpg"] = index
            boxes = (np.array(base.pictures[0].boxes, np.float64) * SIDE).tolist()
            shown = dict(zip(scenes.source.regions_of(index), scenes.source.scene(index).objects, strict=True))
            shapes = [shown[i].shape if i in shown else None for i in range(len(boxes))]
            write_json(
                folder / "vcr1images" / f"{name}.json",
                {
                    "boxes": [[*box, 1.0] for box in boxes],
                    "segms": [[_outline(box, shape)] for box, shape in zip(boxes, shapes, strict=True)],
                    "names": [],
                    "width": SIDE,
                    "height": SIDE,
                },
            )
            link, question = sample.links[0], sample.texts[0]
            tokens: list[Any] = [*question[: link.start].split(), [link.region], *question[link.end :].split()]
            places = rng.permutation(4).tolist()
            reasons = [base.texts[0], *base.false_texts[:3]]
            rows.append(
                {
                    "movie": "scenes",
                    "objects": ["person", *("diningtable" if x is None else THINGS[x] for x in shapes[1:])],
                    "img_fn": f"{name}.jpg",
                    "metadata_fn": f"{name}.json",
                    "question": tokens,
                    "answer_choices": [x.split() for x in sample.texts[1:]],
                    "answer_label": int(sample.answers[0][0]),
                    "rationale_choices": [reasons[i].split() for i in places],
                    "rationale_label": places.index(0),
                    "img_id": f"{scenes.split}-{index}",
                    "annot_id": f"{scenes.split}-{index}",
                }
            )
        write_lines(folder / f"{scenes.split}.jsonl", map(json.dumps, rows))
    return names


def _outline(box: list[float], shape: int | None) -> list[list[float]]:
    """Corners x, y in pixels of what a box shows; of nothing, of the box."""
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) if shape is None else outlines(shape)[0]
    found: list[list[float]] = (np.array(box[:2]) + unit * (np.array(box[2:]) - box[:2])).round(2).tolist()
    return found


# --------------------------------------------------------------------------------------------------------------- regions


def _refcoco(name: str, who: str) -> Writer:
    def write(folder: Path, parts: list[Scenes]) -> dict[str, int]:
        refs, boxes, images, names = list[Any](), list[Any](), list[Any](), dict[str, int]()
        for scenes in parts:
            for index in scenes.numbers:
                file = f"COCO_train2014_{index:012d}.jpg"
                names[file] = index
                images.append({"id": index, "file_name": file, "width": SIDE, "height": SIDE})
                things = range(len(scenes.source.scene(index).objects))
                boxes += [
                    {
                        "id": index * 100 + i,
                        "image_id": index,
                        "category_id": 1 + scenes.source.scene(index).objects[i].shape,
                        "bbox": scenes.box(index, i),
                    }
                    for i in things
                ]
                sample = refer(scenes.source, index)
                target = scenes.source.regions_of(index).index(sample.links[0].region)
                text = sample.texts[0]
                said = {"sent_id": index, "sent": text, "raw": text, "tokens": text.split()}
                refs.append(
                    {
                        "ref_id": index,
                        "ann_id": index * 100 + target,
                        "category_id": 1,
                        "image_id": index,
                        "file_name": f"COCO_train2014_{index:012d}_{index * 100 + target}.jpg",
                        "split": scenes.split,
                        "sent_ids": [index],
                        "sentences": [said],
                    }
                )
        with write_whole(folder / name / f"refs({who}).p") as part:
            part.write_bytes(pickle.dumps(refs, protocol=2))
        write_json(folder / name / "instances.json", {"images": images, "annotations": boxes, "categories": []})
        return names

    return write


def _visual7w(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    """Which region the phrase means; the other boxes are three other regions of the picture."""
    names, images, boxes = dict[str, int](), list[Any](), list[Any]()
    for scenes in parts:
        for index in scenes.numbers:
            sample, file = refer(scenes.source, index), f"v7w_{index}.jpg"
            regions = (np.array(sample.pictures[0].boxes, np.float64) * SIDE).tolist()
            right = sample.links[0].region
            others = [i for i in range(len(regions)) if i != right][:3]
            if len(others) < 3:
                continue
            names[file] = index
            boxes += [
                {"box_id": index * 100 + i, "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "name": "thing"}
                for i in (right, *others)
                for x1, y1, x2, y2 in [regions[i]]
            ]
            pair = {
                "qa_id": index,
                "image_id": index,
                "question": f"which is {sample.texts[0]}?",
                "type": "which",
                "answer": index * 100 + right,
                "multiple_choices": [index * 100 + i for i in others],
            }
            images.append({"image_id": index, "split": scenes.split, "filename": file, "qa_pairs": [pair]})
    write_json(folder / "dataset_v7w_pointing.json", {"dataset": "v7w_pointing", "images": images, "boxes": boxes})
    return names


def _guesswhat(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    names: dict[str, int] = {}
    for scenes in parts:
        games = []
        for index in scenes.numbers:
            sample, file = refer(scenes.source, index), f"COCO_train2014_{index:012d}.jpg"
            target = scenes.source.regions_of(index).index(sample.links[0].region)
            names[file] = index
            count = len(scenes.source.scene(index).objects)
            games.append(
                {
                    "id": index,
                    "image": {"id": index, "file_name": file, "width": SIDE, "height": SIDE},
                    "objects": [
                        {"id": i, "category": "thing", "category_id": 1, "bbox": scenes.box(index, i), "area": 1.0}
                        for i in range(count)
                    ],
                    "object_id": target,
                    "qas": [{"question": f"is it {sample.texts[0]}?", "answer": "Yes"}],
                    "status": "success",
                }
            )
        with write_whole(folder / f"guesswhat.{'valid' if scenes.split == 'val' else 'train'}.jsonl.gz") as part:
            part.write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in games).encode(), mtime=0))
    return names


# -------------------------------------------------------------------------------------------------------------- captions


def _karpathy(name: str) -> Writer:
    def write(folder: Path, parts: list[Scenes]) -> dict[str, int]:
        names, images = dict[str, int](), list[Any]()
        for scenes in parts:
            for index in scenes.numbers:
                coco, said = name == "coco", [scenes.source[index].texts[0], *scenes.source[index].also]
                file = f"COCO_val2014_{index:012d}.jpg" if coco else f"{index}.jpg"
                names[file] = index
                sentences = [
                    {"raw": x, "tokens": x.split(), "imgid": index, "sentid": 10 * index + i}
                    for i, x in enumerate(said)
                ]
                about = {"filepath": "val2014", "cocoid": index} if coco else {}
                ids = [x["sentid"] for x in sentences]
                images.append(
                    {
                        "filename": file,
                        "imgid": index,
                        "split": scenes.split,
                        "sentids": ids,
                        "sentences": sentences,
                        **about,
                    }
                )
        write_json(folder / f"dataset_{name}.json", {"dataset": name, "images": images})
        return names

    return write


def _entities(folder: Path, parts: list[Scenes]) -> dict[str, int]:
    names: dict[str, int] = {}
    for scenes in parts:
        ids = []
        for index in scenes.numbers:
            sample, name = scenes.source[index], str(1_000_000 + index)
            ids.append(name)
            names[f"{name}.jpg"] = index
            text, chains = sample.texts[0], {}
            for link in sorted(sample.links, key=lambda x: -x.start):
                chain = str(10 + link.region)
                chains[chain] = (np.array(sample.pictures[0].boxes[link.region], np.float64) * SIDE).round().astype(int)
                words = text[link.start : link.end]
                text = f"{text[: link.start]}[/EN#{chain}/other {words}]{text[link.end :]}"
            objects = "".join(
                f"<object><name>{escape(chain)}</name><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
                f"<xmax>{box[2] + 1}</xmax><ymax>{box[3] + 1}</ymax></bndbox></object>"
                for chain, box in chains.items()
            )
            size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
            for path, content in (
                (folder / "Sentences" / f"{name}.txt", text + "\n"),
                (folder / "Annotations" / f"{name}.xml", f"<annotation>{size}{objects}</annotation>"),
            ):
                with write_whole(path) as part:
                    part.write_text(content, encoding="utf-8")
        write_lines(folder / f"{scenes.split}.txt", ids)
    return names


PRODUCTS = ("fashiongen", "fashiongen-all", "fashiongen-category", "fashiongen-subcategory")
"""Benchmarks of products instead of scenes."""
TWINS: dict[str, Writer] = {
    "vqa": _vqa,
    "gqa": _gqa,
    "genome-qa": _genome,
    "nlvr2": _nlvr2,
    "snli-ve": _snli_ve,
    "vcr": _vcr,
    "vcr-answers": _vcr,
    "vcr-rationales": _vcr,
    "refcoco": _refcoco("refcoco", "unc"),
    "refcoco+": _refcoco("refcoco+", "unc"),
    "refcocog": _refcoco("refcocog", "umd"),
    "visual7w": _visual7w,
    "guesswhat": _guesswhat,
    "flickr30k": _karpathy("flickr30k"),
    "coco": _karpathy("coco"),
    "coco-captions": _karpathy("coco"),
    "flickr30k-captions": _karpathy("flickr30k"),
    "entities": _entities,
}
"""By benchmark."""
