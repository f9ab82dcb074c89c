"""A folder of .npz files, one a picture: UNITER's extracted features, VisualBERT's (`x`, `bbox`), or this library's own names."""

from __future__ import annotations

from pathlib import Path

from intarsia.batch import Picture
from intarsia.data.formats.npz import read_npz
from intarsia.data.formats.store import RegionStore, make_picture, whole_number
from intarsia.errors import BadInput

FEATURES, BOXES, SCORES = ("features", "x"), ("boxes", "bbox"), ("scores", "conf", "box_conf")
PROBS, WIDTH, HEIGHT = ("probs", "soft_labels", "cls_prob"), ("image_w", "image_width"), ("image_h", "image_height")
KEPT = {*FEATURES, *BOXES, *SCORES, *PROBS, *WIDTH, *HEIGHT, "norm_bb", "labels", "attributes", "attribute_scores"}
KEPT |= {"num_bbox", "num_boxes"}


class NpzFolder(RegionStore):
    """A folder of .npz files as a store; its pictures have sizes only where the files say them.

    Raises:
        BadInput: no .npz file in it.
    """

    kind = "folder of .npz"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.names = sorted(x.relative_to(self.path).as_posix().removesuffix(".npz") for x in self.path.rglob("*.npz"))
        if not self.names:
            raise BadInput(f"{path}: no .npz file")

    def picture(self, number: int) -> Picture:
        """A file as a picture."""
        name, where = self.names[number], self.where(number)
        arrays = read_npz((self.path / f"{name}.npz").read_bytes(), where)

        def first(names: tuple[str, ...]) -> str | None:
            return next((x for x in names if x in arrays), None)

        features, boxes, fractions = first(FEATURES), first(BOXES), "norm_bb" in arrays
        if features is None or (boxes is None and not fractions):
            raise BadInput(
                f"{where}: has arrays {', '.join(sorted(arrays)) or 'none'}; features and boxes or norm_bb are needed"
            )
        wide, high, scores, probs = first(WIDTH), first(HEIGHT), first(SCORES), first(PROBS)
        size = self.size_of(name)
        if wide and high:
            size = (
                whole_number(arrays[wide].item(), f"{where}: {wide}"),
                whole_number(arrays[high].item(), f"{where}: {high}"),
            )
        self.leave(arrays.keys() - KEPT)
        table = arrays["norm_bb"][:, :4] if fractions else arrays[boxes or ""]
        return make_picture(
            name,
            where,
            arrays[features],
            table,
            size,
            pixels=not fractions,
            scores=arrays[scores] if scores else None,
            probs=arrays[probs] if probs else None,
            labels=arrays.get("labels"),
            attributes=arrays.get("attributes"),
            attribute_scores=arrays.get("attribute_scores"),
        )
