from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intarsia.batch import Picture, Sample
from intarsia.data.source import Provenance

WIDTH = 5
MADE = Provenance("tester", WIDTH, weights="w" * 64, classes=("background", "dog", "cat"), settings={"side": "32"})


def jpeg(seed: int = 0, width: int = 40, height: int = 30, **options: Any) -> bytes:
    rng = np.random.default_rng([seed, 0x17E6])
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90, **options
    )
    return buffer.getvalue()


def picture(seed: int, regions: int = 3, name: str = "", extras: bool = True) -> Picture:
    rng = np.random.default_rng([seed, 0x5EED])
    low, size = rng.random((regions, 2)) * 0.5, 0.1 + rng.random((regions, 2)) * 0.3
    return Picture(
        name=name or f"images/{seed}.jpg",
        features=rng.standard_normal((regions, WIDTH)).astype(np.float16),
        boxes=np.concatenate([low, low + size], axis=1).astype(np.float32),
        width=40,
        height=30,
        scores=rng.random(regions).astype(np.float16).astype(np.float32) if extras else None,
        probs=rng.random((regions, 3)).astype(np.float16) if extras else None,
        labels=rng.integers(0, 3, regions) if extras else None,
    )


def same_picture(a: Picture, b: Picture, boxes: float = 0.0) -> None:
    assert (a.name, a.width, a.height) == (b.name, b.width, b.height)
    np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=boxes)
    for name in ("features", "scores", "probs", "labels"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other)


def same_sample(a: Sample, b: Sample) -> None:
    for name in ("key", "texts", "links", "false_texts", "tags", "answers", "language"):
        assert getattr(a, name) == getattr(b, name), name
    assert len(a.pictures) == len(b.pictures)
    for one, other in zip(a.pictures, b.pictures, strict=True):
        same_picture(one, other)


def folder(root: Path, *records: Any) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        (root / "images" / f"{name}.jpg").write_bytes(jpeg(ord(name)))
    lines = (x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in records)
    (root / "pairs.jsonl").write_text("".join(x + "\n" for x in lines), encoding="utf-8")
    return root


def line(**fields: Any) -> dict[str, Any]:
    captions = {} if "captions" in fields else {"caption": "a dog"}
    return {"image": "images/a.jpg", **captions, **fields}
