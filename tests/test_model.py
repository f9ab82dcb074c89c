"""A system made ready for raw pictures, and the conversion of weights through files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Golden
from PIL import Image
from safetensors.torch import load_file

import intarsia
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.model import Model, read_ours
from intarsia.pack import pack
from intarsia.systems import find
from intarsia.worlds import WorldSource


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    main(["pretrain", "uniter", "--data", "worlds:60", "--out", str(out), "--schedule.steps", "2", "--workers", "0"])
    return out


def test_a_match_is_what_the_system_says(run: Path) -> None:
    model, sample = intarsia.open("uniter", weights=run), WorldSource(count=3, split="test")[0]
    found = model.match(sample)
    with torch.no_grad():
        encoded = model.system.encode(pack([model.system.lay_out(sample)]))
    assert found.score == pytest.approx(model.system.match_scores(encoded)[0].item(), abs=1e-6)
    assert found.attention.shape == (len(found.words), len(sample.pictures[0].boxes))
    assert np.allclose(found.attention.sum(1), 1, atol=1e-5)
    assert " ".join(found.words) == sample.texts[0]
    assert 0 < found.probability < 1


def test_pixels_and_a_file_give_the_same_match(run: Path, tmp_path: Path) -> None:
    model, pixels = intarsia.open("uniter", weights=run), WorldSource(count=1).image(0)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    one, other = (model.match(x, "a red circle") for x in (pixels, tmp_path / "scene.png"))
    assert one.score == other.score
    assert np.array_equal(one.boxes, other.boxes)


def test_weights_that_do_not_name_their_extractor_take_no_pictures(run: Path) -> None:
    model = intarsia.open("uniter", weights=run)
    with pytest.raises(BadInput, match="do not say which extractor"):
        Model(model.system, None).match(WorldSource(count=1).image(0), "a red circle")


def test_conversion_goes_there_and_back(tmp_path: Path) -> None:
    golden = Golden.cases("uniter")[0]
    theirs = golden.weights("weights.")
    torch.save(theirs, tmp_path / "authors.pt")
    size = golden.about["config"]["hidden_size"]
    cls = find("uniter")
    small = replace(cls.recipes["tiny"].config, hidden_size=size, num_attention_heads=4)
    patched = {**cls.recipes, "small": replace(cls.recipes["tiny"], config=small)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "recipes", patched)
        main(["convert", "uniter", str(tmp_path / "authors.pt"), str(tmp_path / "ours.safetensors"), "--size", "small"])
        main(["convert", "uniter", str(tmp_path / "ours.safetensors"), str(tmp_path / "again.pt"), "--to", "authors"])
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
    state, config = read_ours(cls, "uniter", tmp_path / "ours.safetensors", "base")
    assert (config.hidden_size, config.num_hidden_layers) == (size, golden.about["config"]["num_hidden_layers"])
    assert (config.feature_size, config.classes) == (golden.about["img_dim"], golden.about["img_label_dim"])
    assert state.keys() == load_file(tmp_path / "ours.safetensors").keys()


def test_the_wrong_size_is_told(tmp_path: Path) -> None:
    torch.save(Golden.cases("uniter")[0].weights("weights."), tmp_path / "authors.pt")
    with pytest.raises(BadInput, match="name another --size"):
        read_ours(find("uniter"), "uniter", tmp_path / "authors.pt", "base")
