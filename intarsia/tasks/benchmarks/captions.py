"""Captions to be written: COCO and Flickr30k in Karpathy's splits, COCO's own files, NoCaps. Data: Chen et al. 2015, Agrawal et al. 2019.

An item is a caption to train on; pictures whose captions are not published are an item each, without words. What is scored is a picture.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, at, each, find_file, of_split, read_json
from intarsia.tasks.metrics import captions, ptb, submissions

KARPATHY = ("train", "val", "test")
SERVER = {
    "train2014": ("captions_train2014.json",),
    "val2014": ("captions_val2014.json",),
    "test2014": ("image_info_test2014.json",),
}
NOCAPS = {
    "val": ("nocaps_val_4500_captions.json", "nocaps_val_image_info.json"),
    "test": ("nocaps_test_image_info.json",),
}
_CHINESE = re.compile(r"[A-Za-z]+|[0-9]+|\S")
DOMAINS = ("in-domain", "near-domain", "out-domain")

Written = Mapping[str, str]
"""By picture, the caption."""


def picture_of(key: str) -> str:
    """The picture that an item shows, by the number that servers know it by."""
    return key.partition("#")[0]


def karpathy(name: str, root: Path, split: str) -> Annotations:
    """`dataset_NAME.json` with all captions of a picture. COCO's restval is training; its own splits are read from its own files."""
    if name == "coco" and split in SERVER:
        return _coco("coco-captions", find_file(root, *SERVER[split]), split)
    if split not in KARPATHY:
        raise BadInput(f"{name}: no split {split!r} (it has {', '.join(KARPATHY)})")
    path = find_file(root, f"dataset_{name}.json")
    shown, said = {}, {}
    for x in each(read_json(path), "images", str(path)):
        where = f"{path}: picture {x.get('imgid')}"
        if ("train" if at(x, "split", where) == "restval" else x["split"]) == split:
            number = str(x["cocoid"] if "cocoid" in x else at(x, "imgid", where))
            shown[number] = str(at(x, "filename", where))
            said[number] = [str(at(s, "raw", where)).strip() for s in each(x, "sentences", where)]
    return _items(f"{name}-captions", split, shown, said)


def nocaps(root: Path, split: str) -> Annotations:
    """NoCaps; its captions are read where the file with them is there."""
    of_split({x: x for x in NOCAPS}, split, "nocaps")
    return _coco("nocaps", find_file(root, *NOCAPS[split]), split)


def _coco(name: str, path: Path, split: str) -> Annotations:
    """COCO's form: pictures, and annotations that name them."""
    content = read_json(path)
    shown, domains = {}, {}
    for x in each(content, "images", str(path)):
        number = str(at(x, "id", str(path)))
        shown[number] = str(at(x, "file_name", f"{path}: image {number}"))
        if "domain" in x:
            domains[number] = str(x["domain"])
    said: dict[str, list[str]] = defaultdict(list)
    for x in each(content, "annotations", str(path)) if "annotations" in content else ():
        number = str(at(x, "image_id", str(path)))
        if number not in shown:
            raise BadInput(f"{path}: annotation {x.get('id')}: there is no image {number}")
        said[number].append(str(at(x, "caption", f"{path}: annotation {x.get('id')}")).strip())
    return _items(name, split, shown, said, domains)


def _items(
    name: str,
    split: str,
    shown: Mapping[str, str],
    said: Mapping[str, list[str]],
    domains: Mapping[str, str] | None = None,
) -> Annotations:
    items, gold = [], dict[str, Any]()
    for number, file in shown.items():
        texts = said.get(number, [])
        items += [
            Item(f"{number}#{i}", (text,), (file,), also=tuple(texts[:i] + texts[i + 1 :]))
            for i, text in enumerate(texts or [""])
        ]
        if texts:
            gold[number] = (tuple(texts), (domains or {}).get(number, ""))
    if gold and len(gold) < len(shown):
        lacking = next(x for x in shown if x not in gold)
        raise BadInput(f"{name}: split {split!r}: image {lacking} has no caption, others have")
    return Annotations(name, split, tuple(items), gold)


def measure(annotations: Annotations, written: Written) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE-L and CIDEr of the pictures written about; where domains are known, CIDEr in each, by its own pictures alone.

    Words are those of CoreNLP's tokenizer, of Chinese the characters, but Latin letters or digits that follow one another are one.
    """
    said, meant = _tokens(annotations, written)
    numbers = captions.score(said, meant).corpus
    for domain in DOMAINS:
        inside = [key for key in written if annotations.gold[key][1] == domain]
        if inside:
            found = captions.cider_d([said[key] for key in inside], [meant[key] for key in inside])
            numbers[f"CIDEr {domain}"] = found.corpus
    return numbers


def measure_java(annotations: Annotations, written: Written) -> tuple[dict[str, float], dict[str, str]]:
    """METEOR and SPICE, by their authors' jars.

    Returns:
        Those whose jars are there, and for the others what is missing.
    """
    from intarsia.tasks.metrics import java

    if _chinese(annotations):
        return {}, dict.fromkeys(("METEOR", "SPICE"), "reads no Chinese")
    said, meant = _tokens(annotations, written)
    found, missing = {}, {}
    for name, jar, run in (("METEOR", java.METEOR_JAR, java.meteor), ("SPICE", java.SPICE_JAR, java.spice)):
        try:
            java.find_jar(jar)
        except BadInput as error:
            missing[name] = str(error)
            continue
        found[name] = run(said, meant).corpus
    return found, missing


def _chinese(annotations: Annotations) -> bool:
    return annotations.items[0].language == "zh"


def _tokens(annotations: Annotations, written: Written) -> tuple[dict[str, str], dict[str, list[str]]]:
    references = {key: annotations.gold[key][0] for key in written}
    if _chinese(annotations):
        apart = {key: [" ".join(_CHINESE.findall(x)) for x in texts] for key, texts in references.items()}
        return {key: " ".join(_CHINESE.findall(text)) for key, text in written.items()}, apart
    said = ptb.of_lines(list(written.values()))
    return dict(zip(written, said, strict=True)), ptb.tokenise_all({key: list(x) for key, x in references.items()})


def submit(path: Path, annotations: Annotations, written: Written) -> None:
    """COCO's results file; NoCaps' with a running id, as Oscar sends it.

    Raises:
        BadInput: a picture has no caption, or its id is no number.
    """
    wanted = dict.fromkeys(picture_of(x.key) for x in annotations.items)
    lacking = [x for x in wanted if x not in written]
    if lacking:
        raise BadInput(f"{path}: the server wants every picture of {annotations.split}: {len(lacking)} have no caption")
    if odd := next((x for x in wanted if not x.isdigit()), None):
        raise BadInput(f"{path}: {odd!r} is no number of a picture")
    submissions.write_captions(path, {int(x): written[x] for x in wanted}, annotations.benchmark == "nocaps")


COCO = partial(karpathy, "coco")
FLICKR30K = partial(karpathy, "flickr30k")
