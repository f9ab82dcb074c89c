"""Examples to a Batch: row behind row, with no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import (
    Array,
    Batch,
    ClipRows,
    Clips,
    Example,
    Images,
    Pick,
    Picks,
    Pixels,
    RegionRows,
    Regions,
    Text,
    TextRows,
)
from intarsia.packed import Packing, taken


def pack(examples: Sequence[Example]) -> Batch:
    """Packs examples into one batch of CPU tensors, row behind row, with no padding.

    Raises:
        ValueError: the examples do not agree on their streams, feature width or targets (names the first sample that differs).
    """
    first = examples[0]
    for x in examples:
        if (
            (x.text is None) != (first.text is None)
            or (x.regions is None) != (first.regions is None)
            or (x.clips is None) != (first.clips is None)
            or x.targets.keys() != first.targets.keys()
        ):
            raise ValueError(
                f"sample {x.key}: its streams or targets {sorted(x.targets)} differ from those of {first.key} {sorted(first.targets)}"
            )
    start: dict[str, Array] = {}
    text = regions = None
    if first.text is not None:
        text = _pack_text([x.text for x in examples if x.text is not None])
        start["text"] = text.packing.cu_seqlens.numpy()
    if first.regions is not None:
        regions = _pack_regions([x.regions for x in examples if x.regions is not None], [x.key for x in examples])
        start["regions"] = regions.packing.cu_seqlens.numpy()
    clips = None
    if first.clips is not None:
        clips = _pack_clips([x.clips for x in examples if x.clips is not None], [x.key for x in examples])
        start["clips"] = clips.packing.cu_seqlens.numpy()
    images = _pack_images([x.images for x in examples]) if any(x.images for x in examples) else None
    if images is not None and regions is not None:
        images = _shared(images, examples, regions.packing)
    numbers: dict[str, int] = {}
    return Batch(
        keys=tuple(x.key for x in examples),
        sample=torch.tensor([numbers.setdefault(x.sample or x.key, len(numbers)) for x in examples]),
        text=text,
        regions=regions,
        images=images,
        clips=clips,
        links=_pack_links(examples, start),
        targets={goal: _pack_target([x.targets[goal] for x in examples], start) for goal in first.targets},
        read={stream: _read(examples, stream, cu) for stream, cu in start.items()},
    )


Stream = TypeVar("Stream", Text, Regions, Clips)


def documents_of(stream: Stream, documents: Tensor, rows: int) -> Stream:
    """Some documents of a stream without levels, repeats allowed, in the order given, on the device that it is on.

    Args:
        stream: of a batch.
        documents: (C) int64.
        rows: how many rows they have in all, known to the host.
    """
    places, packing = taken(stream.packing, documents, rows)
    parts = {x.name: getattr(stream, x.name) for x in fields(stream)}
    return replace(stream, **{name: x[places] for name, x in parts.items() if isinstance(x, Tensor)}, packing=packing)


def _read(examples: Sequence[Example], stream: str, cu: Array) -> Tensor:
    picks = [(x, i) for i, example in enumerate(examples) for x in example.targets.values() if isinstance(x, Pick)]
    picked = [x.rows + cu[i] for x, i in picks if x.stream == stream]
    first = [cu[:-1][np.diff(cu) > 0]] if stream == "text" else []
    return torch.from_numpy(np.unique(np.concatenate([*picked, *first, np.zeros(0, np.int64)]).astype(np.int64)))


def _rows(parts: Sequence[Any], name: str, dtype: Any = np.int64) -> Tensor:
    return torch.from_numpy(np.concatenate([getattr(x, name) for x in parts]).astype(dtype, copy=False))


def _maybe(parts: Sequence[Any], name: str, dtype: Any = None) -> Tensor | None:
    if any(getattr(x, name) is None for x in parts):
        return None
    whole = np.concatenate([getattr(x, name) for x in parts])
    return torch.from_numpy(whole if dtype is None else whole.astype(dtype, copy=False))


def _packing(parts: Sequence[Any]) -> Packing:
    levels = None
    given: list[Array | None] = [getattr(x, "levels", None) for x in parts]
    if any(x is not None for x in given):
        levels = np.concatenate(
            [np.zeros(len(x), np.int32) if y is None else y for x, y in zip(parts, given, strict=True)]
        )
    return Packing.of([len(x) for x in parts], levels)


def _pack_text(parts: Sequence[TextRows]) -> Text:
    ids, segments, positions, words = (_rows(parts, x) for x in ("ids", "segment_ids", "position_ids", "words"))
    return Text(ids, segments, positions, words, _packing(parts))


def _shown(parts: Sequence[RegionRows | ClipRows], keys: Sequence[str], what: str) -> tuple[Tensor, Tensor]:
    """(R, F) features, 0 where they are hidden, and (R) which are.

    Raises:
        ValueError: those of a sample are not as wide as the first's, or not one a row.
    """
    width = parts[0].feats.shape[1]
    for x, key in zip(parts, keys, strict=True):
        if x.feats.shape != (len(x), width):
            raise ValueError(
                f"sample {key}: {what} of shape {x.feats.shape}, expected ({len(x)}, {width}) as in sample {keys[0]}"
            )
    masked = np.concatenate([x.masked for x in parts])
    feats = np.concatenate([x.feats for x in parts])
    feats[masked] = 0
    return torch.from_numpy(feats), torch.from_numpy(masked)


def _pack_regions(parts: Sequence[RegionRows], keys: Sequence[str]) -> Regions:
    feats, masked = _shown(parts, keys, "features")
    return Regions(
        feats=feats,
        boxes=_rows(parts, "boxes", np.float32),
        segment_ids=_rows(parts, "segment_ids"),
        position_ids=_rows(parts, "position_ids"),
        image=_rows(parts, "image"),
        masked=masked,
        packing=_packing(parts),
        probs=_maybe(parts, "probs"),
        labels=_maybe(parts, "labels", np.int64),
        scores=_maybe(parts, "scores", np.float32),
        covers=_pack_covers(parts),
    )


def _pack_covers(parts: Sequence[RegionRows]) -> Tensor | None:
    """Those of the documents that have none are full."""
    cells = next((x.covers.shape[1:] for x in parts if x.covers is not None), None)
    if cells is None:
        return None
    return torch.from_numpy(
        np.concatenate([np.ones((len(x), *cells), np.bool_) if x.covers is None else x.covers for x in parts])
    )


def _pack_clips(parts: Sequence[ClipRows], keys: Sequence[str]) -> Clips:
    feats, masked = _shown(parts, keys, "clips")
    return Clips(
        ids=_rows(parts, "ids"),
        feats=feats,
        seconds=_rows(parts, "seconds", np.float32),
        segment_ids=_rows(parts, "segment_ids"),
        position_ids=_rows(parts, "position_ids"),
        masked=masked,
        packing=_packing(parts),
    )


def _pack_images(parts: Sequence[Sequence[Pixels]]) -> Images:
    whole = [image for images in parts for image in images]
    sizes = np.array([(x.height, x.width) for x in whole], np.int64)
    pixels = np.zeros((len(whole), 3, *sizes.max(0)), np.float32)
    for room, image in zip(pixels, whole, strict=True):
        room[:, : image.height, : image.width] = image.read()
    doc = np.repeat(np.arange(len(parts)), [len(x) for x in parts])
    return Images(torch.from_numpy(pixels), torch.from_numpy(sizes), torch.from_numpy(doc))


def _shared(images: Images, examples: Sequence[Example], packing: Packing) -> Images:
    """With the rows that are read once, where regions have no image of their own: they are those of the last document before that has.

    Raises:
        ValueError: there is none, or it has not as many.
    """
    has = np.array([bool(x.images) for x in examples])
    if all(x.images or not x.regions for x in examples):
        return images
    doc, pos, first = (x.numpy() for x in (packing.doc, packing.pos, packing.first))
    counts, numbers = packing.lengths.numpy(), np.arange(len(examples))
    owner = np.maximum.accumulate(np.where(has, numbers, -1))
    for i in np.flatnonzero(~has & (counts > 0)).tolist():
        if owner[i] < 0 or counts[owner[i]] != counts[i]:
            raise ValueError(f"sample {examples[i].key}: {counts[i]} regions, and no image to read them off")
    once = np.flatnonzero(has[doc])
    again = np.searchsorted(once, first[owner[doc]] + pos)
    return replace(images, once=torch.from_numpy(once), again=torch.from_numpy(again))


def _pack_links(examples: Sequence[Example], start: dict[str, Array]) -> Tensor | None:
    if "text" not in start or "regions" not in start:
        return None
    return torch.from_numpy(
        np.concatenate([x.links + [[start["text"][i], start["regions"][i]]] for i, x in enumerate(examples)]).astype(
            np.int64
        )
    )


def _pack_target(parts: Sequence[Pick | Array], start: dict[str, Array]) -> Picks | Tensor:
    if isinstance(parts[0], Pick):
        picks = [x for x in parts if isinstance(x, Pick)]
        rows = np.concatenate([x.rows + start[x.stream][i] for i, x in enumerate(picks)]).astype(np.int64)
        return Picks(torch.from_numpy(rows), torch.from_numpy(np.concatenate([x.labels for x in picks])))
    return torch.from_numpy(np.stack([np.asarray(x) for x in parts]))
