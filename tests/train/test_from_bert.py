"""Pre-training from a plain BERT: every tensor of it is taken where the paper takes it, or named; the network is then that BERT."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertModel

from intarsia.batch import Example, TextRows
from intarsia.cli import main
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.system import System
from intarsia.systems import find
from intarsia.text import SPECIALS, Vocab
from intarsia.train.from_bert import from_bert
from intarsia.weights.files import write_weights

VOCAB = Vocab([*SPECIALS, "[IMAGE]", *(f"[OBJ-{i}]" for i in range(16)), *(f"w{i}" for i in range(40))])
SINGLE = ("visualbert", "vl_bert", "unicoder_vl", "b2t2", "uniter", "vlp", "oscar", "imagebert", "pixel_bert")
NUMBERS: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
}
SEEN = Provenance("made", 8, ("background", "a", "b"))


def small(**changes: Any) -> BertForPreTraining:
    torch.manual_seed(5)
    config = BertConfig(vocab_size=len(VOCAB), max_position_embeddings=70, **(NUMBERS | changes))
    net = BertForPreTraining(config).eval()
    for parameter in net.parameters():  # biases and norms too, so that a tensor in the wrong place shows
        torch.nn.init.normal_(parameter, 0.05, 0.2)
    return net


def state_of(net: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def begin(name: str, path: Path, **changes: Any) -> tuple[System, Any]:
    cls = find(name)
    recipe = cls.recipes["base"]
    recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **(NUMBERS | changes)))
    system, _, begun = from_bert(cls, recipe, VOCAB, SEEN, path)
    return system.eval(), begun


@pytest.fixture(scope="module", params=["pytorch_model.bin", "bert.safetensors"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / str(request.param)
    write_weights(path, state_of(small()))
    return path


@pytest.mark.parametrize("name", SINGLE)
def test_every_tensor_is_taken_or_named(name: str, file: Path) -> None:
    system, begun = begin(name, file)
    theirs = state_of(small())
    assert sorted([*begun.taken, *begun.left]) == sorted(theirs)
    ours = system.state_dict()
    assert torch.equal(ours["words.word.weight"], theirs["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(ours["words.position.weight"], theirs["bert.embeddings.position_embeddings.weight"])
    known = sum(value.numel() for key, value in ours.items() if key not in begun.drawn)
    assert known >= sum(theirs[key].numel() for key in begun.taken if "decoder" not in key and "token_type" not in key)
    assert ("cls.seq_relationship.bias" in begun.taken) == (name in ("visualbert", "oscar"))
    assert ("bert.pooler.dense.bias" in begun.left) == (name in ("vl_bert", "pixel_bert"))


@pytest.mark.parametrize("name", [x for x in SINGLE if x not in ("b2t2", "vl_bert", "vlp")])
def test_it_reads_text_as_that_bert(name: str, file: Path) -> None:
    """The words' stream alone, through embeddings, encoder and pooler, is transformers' BERT."""
    system, _ = begin(name, file)
    ids = [VOCAB.cls, 25, 30, VOCAB.mask, 41, VOCAB.sep]
    rows = TextRows(*(torch.tensor(x).numpy() for x in (ids, [0, 0, 0, 1, 1, 1], range(6), [-1, 0, 1, 2, 3, -1])))
    batch = pack([Example("a", rows)])
    assert batch.text is not None
    x = system.get_submodule("encoder")(system.get_submodule("words")(batch.text), batch.text.packing)
    with torch.no_grad():
        theirs = small()(
            input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([[0, 0, 0, 1, 1, 1]]), output_hidden_states=True
        )
    assert (x - theirs.hidden_states[-1][0]).abs().max() < 1e-5
    words = system.get_submodule("word_head")(x, system.get_parameter("words.word.weight"))
    assert (words - theirs.prediction_logits[0]).abs().max() < 1e-5
    if name in ("visualbert", "oscar"):
        pooled = system.get_submodule("pooler")(x, batch.text.packing)
        matched = system.get_submodule("match_head")(pooled)
        assert (matched - theirs.seq_relationship_logits).abs().max() < 1e-5


STREAMS: dict[str, Any] = {"v_num_hidden_layers": 1, "v_biattention_id": (0,), "t_biattention_id": (1,)}


@pytest.mark.parametrize(
    ("name", "changes"), [("vilbert", STREAMS), ("ernie_vil", STREAMS), ("lxmert", {"num_hidden_layers": 1})]
)
def test_the_words_of_two_streams_begin_as_bert(name: str, changes: dict[str, Any], file: Path) -> None:
    system, begun = begin(name, file, **changes)
    theirs, ours, taken = state_of(small()), system.state_dict(), name != "lxmert"
    assert sorted([*begun.taken, *begun.left]) == sorted(theirs)
    assert torch.equal(ours["words.word.weight"], theirs["bert.embeddings.word_embeddings.weight"])
    for i in range(changes.get("num_hidden_layers", 2)):
        layer = theirs[f"bert.encoder.layer.{i}.output.dense.weight"]
        assert torch.equal(ours[f"encoder.layers.{i}.down.weight"], layer)
    assert torch.equal(ours["word_head.bias"], theirs["cls.predictions.bias"])
    assert ("bert.encoder.layer.1.output.dense.weight" in begun.taken) == taken
    assert ("cls.seq_relationship.bias" in begun.taken) == (not taken)
    assert any(key.startswith("regions.") for key in begun.drawn)
    if name == "lxmert":
        with pytest.raises(BadInput, match="num_hidden_layers is 2, the recipe has 3"):
            begin(name, file, num_hidden_layers=3)


def test_segments_and_copies(file: Path) -> None:
    table = state_of(small())["bert.embeddings.token_type_embeddings.weight"]
    vlp, begun = begin("vlp", file)
    assert torch.equal(vlp.state_dict()["words.segment.weight"], table[[0, 1, 0, 0, 0, 1]])
    assert "words.segment.weight" not in begun.drawn
    vl_bert, begun = begin("vl_bert", file)
    ours = vl_bert.state_dict()["words.segment.weight"]
    assert torch.equal(ours[:2], table)
    assert 0 < ours[2].abs().max() < 0.12  # drawn with .02
    assert "words.segment.weight" in begun.drawn
    visualbert, begun = begin("visualbert", file)
    state = visualbert.state_dict()
    assert torch.equal(state["regions.segment.weight"], table)
    assert torch.equal(state["regions.position.weight"], state["words.position.weight"])
    assert begun.drawn == ("regions.feature.weight", "regions.feature.bias")


def test_a_bare_model_and_oscar_plus(tmp_path: Path) -> None:
    """A file without heads and without "bert." fills all but the heads; three classes leave the next-sentence head out."""
    bare = BertModel(small().config)
    write_weights(tmp_path / "bare.bin", state_of(bare))
    system, begun = begin("uniter", tmp_path / "bare.bin")
    assert begun.left == ()
    assert any(key.startswith("word_head.") for key in begun.drawn)
    assert torch.equal(system.state_dict()["pooler.dense.weight"], bare.state_dict()["pooler.dense.weight"])
    write_weights(tmp_path / "whole.bin", state_of(small()))
    _, begun = begin("oscar", tmp_path / "whole.bin", num_contrast_classes=3)
    assert begun.left == ("cls.seq_relationship.weight", "cls.seq_relationship.bias")
    assert (
        "left out: cls.seq_relationship.weight, cls.seq_relationship.bias; drawn: regions.feature, match_head"
        in begun.told
    )


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bert.safetensors"
    whole = {key: value for key, value in state_of(small()).items() if "decoder" not in key}  # as files without ties

    def refused(state: dict[str, Tensor], match: str, **changes: Any) -> None:
        write_weights(path, state)
        with pytest.raises(BadInput, match=match):
            begin("uniter", path, **changes)

    refused(whole | {"bert.encoder.layer.0.adapter.weight": torch.zeros(2)}, "1 keys of another layout")
    refused({k: v for k, v in whole.items() if k != "bert.encoder.layer.1.output.dense.bias"}, "1 tensors missing")
    refused({k: v for k, v in whole.items() if k != "cls.predictions.bias"}, "1 tensors missing")
    refused({k: v for k, v in whole.items() if "embeddings" not in k}, "no BERT")
    refused(whole, "num_hidden_layers is 2, the recipe has 3", num_hidden_layers=3)
    refused(whole, "hidden_size is 24, the recipe has 48", hidden_size=48)
    refused(whole | {"bert.embeddings.word_embeddings.weight": torch.zeros(70, 24)}, "has 70 pieces, the vocabulary 62")
    refused(whole | {"bert.encoder.layer.0.output.dense.weight": torch.zeros(24, 35)}, "shape")

    class Other(find("uniter")):  # type: ignore[misc]
        from_bert = None

    with pytest.raises(BadInput, match="uniter is not pre-trained from BERT"):
        from_bert(Other, Other.recipes["base"], VOCAB, SEEN, path)

    class Harm:
        def __reduce__(self) -> Any:
            return print, ("harm",)

    torch.save({"bert.embeddings.word_embeddings.weight": Harm()}, tmp_path / "harm.bin")
    with pytest.raises(BadInput, match="refused: the pickle wants to run"):
        begin("uniter", tmp_path / "harm.bin")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from intarsia.worlds import WorldSource

    words = {w for i in range(30) for t in WorldSource(count=30)[i].texts for w in t.split()}
    vocab = [*SPECIALS, *sorted(words)]
    torch.manual_seed(1)
    net = BertForPreTraining(BertConfig(vocab_size=len(vocab), max_position_embeddings=64, **NUMBERS))
    write_weights(tmp_path / "bert/pytorch_model.bin", state_of(net))
    order = ["pretrain", "uniter", "--data", "worlds:30", "--out", str(tmp_path / "run"), "--workers", "0"]
    order += ["--schedule.steps", "2", "--schedule.warmup", "0", "--batching.rows", "400", "--device", "cpu"]
    for name, value in NUMBERS.items():
        order += [f"--config.{name.replace('_', '-')}", str(value)]
    order += ["--start", str(tmp_path / "bert/pytorch_model.bin")]
    with pytest.raises(SystemExit):
        main(order)
    assert "name the vocabulary of this BERT with --vocab" in capsys.readouterr().err
    (tmp_path / "bert/vocab.txt").write_text("\n".join(vocab) + "\n")
    main(order)
    told = capsys.readouterr().out
    assert "left out: cls.seq_relationship.weight, cls.seq_relationship.bias" in told
    assert "drawn: regions.feature" in told
    assert (tmp_path / "run/vocab.txt").read_text().split("\n")[: len(vocab)] == vocab
    assert json.loads((tmp_path / "run/recipe.json").read_text())["recipe"]["config"]["max_position_embeddings"] == 64
