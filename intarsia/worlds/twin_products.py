"""The twin of FashionGen: generated products in its HDF5 files. Descriptions do not say what a product is, so that only its picture tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from intarsia.batch import Array
from intarsia.data.formats.files import write_whole
from intarsia.data.formats.shards import ShardWriter
from intarsia.errors import BadInput, needs_extra
from intarsia.features.patches import Patches
from intarsia.worlds.product_source import ProductSource, ProductSplit
from intarsia.worlds.products import name_of, write_description

SIDE = 256
POSES = 3
"""Every third product is shown a second time, turned round."""


def write_fashiongen(folder: Path, train: int, val: int, seed: int, pictures: bool) -> Path:
    """Writes both files, and the cells of all pictures as regions.

    Args:
        folder: where; region shards go to its regions/.
        train: products to train on.
        val: products held out.
        seed: of the products.
        pictures: write them as files too, to images/.

    Returns:
        The folder of the shards.
    """
    grid = Patches(8)
    writer = ShardWriter(folder / "regions", grid.provenance, "../images" if pictures else "")
    splits: tuple[tuple[ProductSplit, int], ...] = (("train", train), ("validation", val))
    for split, count in splits:
        source = ProductSource(split, count, seed)
        rows = [(i, turned) for i in range(count) for turned in (False, True)[: 1 + (i % POSES == 0)]]
        shown = [_shown(source, *row) for row in rows]
        _write(folder / f"fashiongen_256_256_{split}.h5", source, rows, shown)
        for row, image in enumerate(shown):
            name = f"{split}/{row:06d}"
            if name not in writer.done():
                (found,) = grid([image])
                picture = source[rows[row][0]].pictures[0]
                writer.add(replace(picture, name=name, features=found.features, width=SIDE, height=SIDE, pixels=None))
            if pictures:
                with write_whole(folder / "images" / name) as part:
                    Image.fromarray(image).save(part, "PNG")
    writer.finish(())
    return folder / "regions"


def _shown(source: ProductSource, index: int, turned: bool) -> Array:
    image = np.asarray(Image.fromarray(source.image(index)).resize((SIDE, SIDE)))
    return np.ascontiguousarray(image[:, ::-1]) if turned else image


def _write(path: Path, source: ProductSource, rows: list[tuple[int, bool]], shown: list[Array]) -> None:
    try:
        import h5py
    except ImportError:
        raise needs_extra("formats", "h5py") from None
    said = [write_description(replace(source.said(i), kind=None), "en") for i, _ in rows]
    kinds = [name_of(source.product(i), "en") for i, _ in rows]
    texts = {
        "input_description": said,
        "input_category": [category.upper() for _, category in kinds],
        "input_subcategory": [kind.upper() for kind, _ in kinds],
        "input_productID": [str(1000 + i) for i, _ in rows],
    }
    longest = max(len(x) for y in texts.values() for x in y)
    if any(not x.isascii() for x in said):
        raise BadInput(f"{path}: descriptions are written in latin-1")
    with write_whole(path) as temporary, h5py.File(temporary, "w") as file:
        file["input_image"] = np.stack(shown)
        file["index"] = np.arange(len(rows))[:, None]
        for name, values in texts.items():
            file[name] = np.array(values, f"S{longest}")[:, None]
