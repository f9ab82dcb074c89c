"""The examples of docs/detectors.md, run as they are with a small detector and small Hugging Face models; and that both roads give the same numbers."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import intarsia
from intarsia.errors import BadInput
from intarsia.features import frcnn_pixels, open_extractor
from intarsia.features.detector_weights import published
from intarsia.pack import pack
from intarsia.systems import SYSTEMS, find
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import write_weights

sys.path.insert(0, str(Path(__file__).parent / "features"))
from tiny_detector import tiny_detector

PAGE = Path(__file__).parents[1] / "docs/detectors.md"
WORDS = "a red cup"
WITH_REGIONS = [name for name in SYSTEMS if "regions" in find(name).needs]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, a detector and a vocabulary, that examples run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    real = frcnn_pixels.caffe
    monkeypatch.setitem(frcnn_pixels.PREPARE, "caffe", lambda image: real(image, short=96, longest=160))
    scale = frcnn_pixels.caffe_scale
    monkeypatch.setattr(frcnn_pixels, "caffe_scale", lambda h, w, short=96, longest=160: scale(h, w, 96, 160))
    write_weights(tmp_path / "detector.pth", published(tiny_detector("milvlg")))
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg", format="PNG")
    Vocab([*SPECIALS, *WORDS.split(), "##x", "un"]).write(tmp_path / "vocab.txt")
    return tmp_path


def examples() -> list[str]:
    return re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_examples_run_and_agree(files: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    width = tiny_detector("milvlg").width
    tiny = find("visualbert").recipes["tiny"].config
    numbers = {key: value for key, value in asdict(tiny).items() if key != "vocab_size"}
    about = transformers.VisualBertConfig(**numbers, vocab_size=len(SPECIALS) + 5, visual_embedding_dim=width)
    theirs = transformers.VisualBertForPreTraining(about).eval()
    theirs.save_pretrained("visualbert")
    torch.save(theirs.state_dict(), "visualbert.bin")
    small = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
    small |= {"l_layers": 1, "r_layers": 1, "x_layers": 1, "visual_feat_dim": width}
    transformers.LxmertModel(transformers.LxmertConfig(**small, vocab_size=len(SPECIALS) + 5)).save_pretrained("lxmert")

    ours, field = (dict[str, Any](), dict[str, Any]())
    use, hugging = examples()
    exec(use, ours)
    exec(hugging, field)
    assert field["pooled"].shape == (1, 24)
    assert 10 <= len(field["found"].boxes) <= 36
    logits = field["matched"][0]
    match = ours["model"].match("photo.jpg", WORDS)
    np.testing.assert_array_equal(match.boxes, field["found"].boxes)
    assert match.score == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)


@pytest.mark.parametrize("name", WITH_REGIONS)
def test_a_raw_picture_goes_into_every_system_that_reads_regions(files: Path, name: str) -> None:
    cls = find(name)
    Vocab.learn([WORDS, *(f"object {i}" for i in range(9))], specials=cls.specials).write(files / "vocab.txt")
    detector = open_extractor("butd", weights="detector.pth", device="cpu")
    torch.manual_seed(0)
    model = intarsia.open(name, "tiny", vocab="vocab.txt", extractor=detector)
    sample = model.sample("photo.jpg", WORDS)
    assert len(sample.tags) == len(sample.pictures[0].boxes) >= 10
    assert sample.pictures[0].attributes is not None
    with torch.no_grad():
        encoded = model.system.encode(pack([model.system.lay_out(sample)]))
    assert torch.isfinite(encoded.text).all()
    if model.system.matches:
        assert model.match("photo.jpg", WORDS).score == pytest.approx(model.system.match_scores(encoded)[0].item())


def test_an_extractor_that_does_not_fit_is_refused(files: Path) -> None:
    detector = open_extractor("butd", weights="detector.pth", device="cpu")
    model = intarsia.open("uniter", "tiny", vocab="vocab.txt", extractor=detector)
    grid = open_extractor("grid", device="cpu")
    with pytest.raises(BadInput, match="extractor grid: features of width 256, the weights take 32"):
        intarsia.model.Model(model.system, None, extractor=grid)
    other = open_extractor("butd", weights="detector.pth", device="cpu", rule="36")
    with pytest.raises(BadInput, match=r"extractor butd: features with settings .*'36'.* trained on .*'10-100'"):
        intarsia.model.Model(model.system, detector.provenance, extractor=other)
    published = Path("uniter.pt")
    torch.save(find("uniter").keys.to_theirs(model.system.state_dict()), published)
    with pytest.raises(
        BadInput,
        match=r"trained on regions of butd \(rule 10-100\), these are of butd \(rule 36\): use `intarsia extract",
    ):
        intarsia.open("uniter", "tiny", weights=published, vocab="vocab.txt", extractor=other)
    opened = intarsia.open("uniter", "tiny", weights=published, vocab="vocab.txt", extractor=detector)
    assert opened.match("photo.jpg", WORDS).score == pytest.approx(model.match("photo.jpg", WORDS).score, abs=1e-5)
    with pytest.raises(BadInput, match=r"open with extractor=open_extractor"):
        intarsia.model.Model(model.system, None).match("photo.jpg", WORDS)
