"""Features that somebody made already become film shards, with what is said in the videos."""

import json

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.features.clips import ClipExtractor, open_clip_extractor


@pytest.fixture
def root(tmp_path):
    """HowTo100M's layout: a vector a second, VIDEO.mp4.npy in folders, one file that says what is said."""
    for name, count in (("a/x1.mp4.npy", 6), ("a/x2.npy", 4)):
        path = tmp_path / "features" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.arange(count, dtype=np.float32)[:, None].repeat(8, 1))
    said = {"x1": {"text": ["stir the soup", "serve"], "start": [0.2, 3.1], "end": [1.9, 5.5]}}
    (tmp_path / "raw_caption.json").write_text(json.dumps(said))
    return tmp_path


def order(root, *more):
    captions = ["--captions", str(root / "raw_caption.json")]
    stored = ["--extractor", "stored", "--options", "width", "8", "made", "ours"]
    return ["extract", "video", str(root / "features"), "--out", str(root / "clips"), *captions, *stored, *more]


def test_a_vector_a_second(root, capsys):
    main(order(root))
    said = capsys.readouterr().out
    assert "2 films (0 from before), 10 clips of 0 frames" in said
    assert "1 films without speech" in said
    source = open_source(root / "clips", "train")
    told, silent = (source[i] for i in range(2))
    assert told.texts == ("stir the soup", "serve")
    assert told.film.length == 1
    np.testing.assert_array_equal(told.film.features[:, 0], told.film.seconds)
    assert silent.texts == () and len(silent.film.seconds) == 4
    assert source.provenance.settings == {"made": "ours", "fps": "1", "frames": "1"}


def test_bad_files_are_named(root, capsys):
    bad = {"wide": np.zeros((3, 9)), "empty": np.zeros((0, 8)), "flat": np.zeros(8), "odd": np.full((2, 8), np.nan)}
    for name, rows in bad.items():
        np.save(root / "features" / f"{name}.npy", rows)
    main(order(root, "--on-error", "skip"))
    assert "4 films skipped" in capsys.readouterr().out
    told = (root / "clips" / "skipped.txt").read_text()
    assert "odd.npy: clip 0 is not finite" in told
    for name in ("wide", "empty", "flat"):
        assert f"{name}.npy: float64 {bad[name].shape}, expected clips of 8 numbers" in told
    with pytest.raises(BadInput, match="seconds '0' is no length"):
        open_clip_extractor("stored", seconds="0")
    extractor = open_clip_extractor("stored", seconds="1.5")
    assert isinstance(extractor, ClipExtractor)
    assert float(extractor.sampling.length) == 1.5
    with pytest.raises(TypeError, match="read, not computed"):
        extractor(np.zeros((1, 1, 2, 2, 3), np.uint8))
