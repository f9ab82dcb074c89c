"""Oscar over codes instead of region features, against the authors' lines written out; from pictures to a tuned system. Source: modeling_bert.py, run_vqa.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intarsia.batch import Picture, Sample
from intarsia.cli import main
from intarsia.data.formats.shards import ShardWriter
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.vqgan import read_codec
from intarsia.pack import pack
from intarsia.systems.oscar import Oscar, OscarConfig
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import read_weights
from intarsia.worlds.source import WorldSource

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(40))])
VOC, DIM, SIZE = 20, 6, 9
KINDS = {"dis_code": 0, "dis_code_t": SIZE}


def oscar(kind: str) -> Oscar:
    torch.manual_seed(3)
    numbers: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    numbers |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 20}
    codes = {"code_voc": VOC, "code_dim": DIM, "code_size": KINDS[kind]}
    net = Oscar(OscarConfig(vocab_size=len(VOCAB), feature_size=1, max_regions=4, **numbers, **codes), VOCAB)
    for value in net.parameters():
        torch.nn.init.normal_(value, 0.02, 0.3)
    return net


def made(number: int, codes: Any = None) -> Sample:
    rng = np.random.default_rng(number)
    codes = rng.integers(0, VOC, SIZE) if codes is None else np.asarray(codes)
    places = np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (len(codes), 1))
    picture = Picture(f"p{number}", codes[:, None].astype(np.float32), places, tags=("w30", "w31"))
    return Sample(f"s{number}", (" ".join(f"w{i}" for i in rng.integers(0, 30, 3 + number)),), (picture,))


class Theirs(nn.Module):
    """What the authors do with codes (B, L): an embedding, turned for dis_code_t, and a projection."""

    def __init__(self, kind: str, like: Oscar) -> None:
        super().__init__()
        self.turned = kind == "dis_code_t"
        self.code_embeddings = nn.Embedding(VOC, DIM, padding_idx=0)
        self.img_embedding = nn.Linear(SIZE if self.turned else DIM, like.config.hidden_size)
        state = Oscar.keys.to_theirs(like.state_dict())
        names = ("code_embeddings.weight", "img_embedding.weight", "img_embedding.bias")
        self.load_state_dict({x: state[f"bert.{x}"].clone() for x in names})

    def forward(self, codes: Tensor) -> Tensor:
        found = self.code_embeddings(codes)
        return self.img_embedding(found.permute(0, 2, 1) if self.turned else found)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_embedded_as_the_authors_do(kind: str) -> None:
    """All codes are read, however many regions there may be; code 0 gets no gradient."""
    net = oscar(kind)
    theirs = Theirs(kind, net)
    samples = [made(1), made(2), made(3, [0] * 4 + [5] * 5)]
    batch = pack([net.lay_out(x) for x in samples])
    assert batch.regions is not None
    ours = net.regions(batch.regions)
    wanted = theirs(torch.tensor(np.stack([x.pictures[0].features[:, 0] for x in samples])).long()).flatten(0, 1)
    torch.testing.assert_close(ours, wanted)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (wanted * weights).sum().backward()
    grad = net.regions.codes.weight.grad
    torch.testing.assert_close(grad, theirs.code_embeddings.weight.grad)
    assert not grad[0].any() and grad[5].any()
    torch.testing.assert_close(net.regions.feature.weight.grad, theirs.img_embedding.weight.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_system_reads_their_rows(kind: str) -> None:
    """Behind the words stand the projected rows as they are, without norm or dropout: BERT's layers written out over one document."""
    net = oscar(kind).train()
    sample = made(2)
    batch = pack([net.lay_out(sample)])
    assert batch.text is not None
    codes = torch.tensor(sample.pictures[0].features[:, 0]).long()[None]
    x = torch.cat([net.words(batch.text), Theirs(kind, net)(codes)[0]])
    state = Oscar.keys.to_theirs(net.state_dict())

    def linear(name: str, value: Tensor) -> Tensor:
        return nn.functional.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return nn.functional.layer_norm(value, (24,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    for i in range(2):
        at = f"bert.encoder.layer.{i}."
        q, k, v = (
            linear(f"{at}attention.self.{y}", x).view(-1, 3, 8).transpose(0, 1) for y in ("query", "key", "value")
        )
        seen = ((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = norm(f"{at}attention.output.LayerNorm", x + linear(f"{at}attention.output.dense", seen))
        up = nn.functional.gelu(linear(f"{at}intermediate.dense", x))
        x = norm(f"{at}output.LayerNorm", x + linear(f"{at}output.dense", up))
    encoded = net.encode(batch)
    count = len(batch.text.ids)
    torch.testing.assert_close(encoded.text, x[:count], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.visual, x[count:], atol=1e-5, rtol=1e-5)
    assert len(encoded.visual) == (DIM if kind == "dis_code_t" else SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_there_and_back(kind: str) -> None:
    state = oscar(kind).state_dict()
    theirs = Oscar.keys.to_theirs(state)
    assert theirs["bert.code_embeddings.weight"].shape == (VOC, DIM)
    back = Oscar.keys.to_ours(theirs)
    assert back.keys() == state.keys() and all(torch.equal(x, state[name]) for name, x in back.items())


def test_what_is_no_code_is_refused() -> None:
    for codes, told in (
        ([1, VOC], "sample s1: picture p1: 20.0 is no code, they are whole numbers from 0 to 19"),
        ([1, -1], "-1.0 is no code"),
        ([1.5, 2], "1.5 is no code"),
        ([np.nan, 2], "nan is no code"),
    ):
        with pytest.raises(BadInput, match=told):
            oscar("dis_code").lay_out(made(1, codes))
    with pytest.raises(BadInput, match="sample s1: picture p1: has 3 codes, code_size is 9"):
        oscar("dis_code_t").lay_out(made(1, [1, 2, 3]))
    wide = oscar("dis_code")
    wide.config = dataclasses.replace(wide.config, feature_size=2)
    sample = made(1)
    two = dataclasses.replace(sample.pictures[0], features=np.ones((SIZE, 2), np.float32))
    with pytest.raises(BadInput, match="features of width 2, codes are one number each"):
        wide.lay_out(dataclasses.replace(sample, pictures=(two,)))
    many = oscar("dis_code")
    many.config = dataclasses.replace(many.config, code_voc=16384)
    half = dataclasses.replace(sample.pictures[0], features=sample.pictures[0].features.astype(np.float16))
    with pytest.raises(BadInput, match="codes to 16383 in float16, which holds whole numbers to 2048"):
        many.lay_out(dataclasses.replace(sample, pictures=(half,)))


@pytest.mark.parametrize("kind", KINDS)
def test_from_pictures_to_a_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the page says: a codec, the codes of pictures as features of one number, a run whose table starts as the codec's."""
    file, world = tmp_path / "codes.safetensors", WorldSource(count=12)
    main(["data", "codes", "worlds:12", "--out", str(file), "--steps", "2", "--codes", "32", "--channels", "8"])
    codec, lines = read_codec(file), []
    side = int(codec.length**0.5)
    grid = np.array([(x, y, x + 1, y + 1) for y in range(side) for x in range(side)], np.float32) / side
    writer = ShardWriter(tmp_path / "coded", Provenance("codes", 1))
    for i in range(len(world)):
        picture = world[i].pictures[0]
        assert picture.pixels is not None
        features = codec.encode([picture.pixels()]).T.astype(np.float32)
        writer.add(Picture(picture.name, features, grid, picture.width, picture.height, tags=picture.tags))
        lines.append({"key": world[i].key, "image": picture.name, "captions": [world[i].texts[0]]})
    writer.finish(lines)
    width = codec.codebook.shape[1]
    order = ["pretrain", "oscar", "--size", "tiny", "--data", str(tmp_path / "coded"), "--workers", "0"]
    order += ["--device", "cpu", "--schedule.steps", "2", "--batching.rows", "400", "--config.code-voc", "32"]
    order += ["--config.code-size", str(codec.length if kind == "dis_code_t" else 0)]
    with pytest.raises(SystemExit):
        wrong = ["--config.code-dim", "7", "--trunk", str(file), "--out", str(tmp_path / "wrong")]
        main([*order, *wrong])
    told = " ".join(capsys.readouterr().err.split())
    assert f"(codes, width) are (32, {width}), code_voc and code_dim (32, 7)" in told
    main(
        [
            *order,
            "--config.code-dim",
            str(width),
            "--trunk",
            str(file),
            "--out",
            str(tmp_path / "run"),
            "--optim.lr",
            "0",
        ]
    )
    state = read_weights(tmp_path / "run/model.safetensors")
    assert torch.equal(state["regions.codes.weight"], codec.codebook)
    rows = json.loads((tmp_path / "run/recipe.json").read_text())["recipe"]["config"]
    assert (rows["feature_size"], rows["code_voc"]) == (1, 32)
