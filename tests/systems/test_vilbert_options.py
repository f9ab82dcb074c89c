"""ViLBERT's rarer options: words that scale the regions' attention, words read once for many pictures, fixed first layers, RoBERTa's words."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

import intarsia
from intarsia.batch import Batch, Encoded, Example, Picture, Sample, TextRows
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.evaluate.matching import match
from intarsia.evaluate.running import QUIET
from intarsia.model import read_ours
from intarsia.pack import pack
from intarsia.packed import Packing
from intarsia.system import begin, fit_config
from intarsia.systems.vilbert import ViLBERT
from intarsia.text import SPECIALS, BytePieces, Vocab
from intarsia.train.from_bert import from_bert
from intarsia.tuned import start
from intarsia.weights.files import read_weights, write_weights
from intarsia.worlds import WorldSource

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(60))])
WIDTH, CLASSES = 6, 5
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "v_hidden_size": 16,
    "v_num_hidden_layers": 3,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 12,
    "bi_hidden_size": 20,
    "bi_num_attention_heads": 5,
    "v_biattention_id": (1, 2),
    "t_biattention_id": (2, 3),
    "max_position_embeddings": 80,
}


def made(number: int, regions: int = 5, length: int = 7) -> Sample:
    rng = np.random.default_rng([number, 3])
    low = rng.random((regions, 2)) / 2
    picture = Picture(
        name=f"p{number}",
        features=rng.standard_normal((regions, WIDTH)).astype(np.float32),
        boxes=np.concatenate([low, low + 0.4], 1).astype(np.float32),
        width=200,
        height=100,
        probs=rng.dirichlet(np.ones(CLASSES), regions).astype(np.float32),
    )
    return Sample(f"s{number}", (" ".join(rng.choice(VOCAB.tokens[len(SPECIALS) :], length)),), (picture,))


def system(size: str = "base", **changes: Any) -> ViLBERT:
    config = fit_config(ViLBERT.recipes[size].config, len(VOCAB), WIDTH, CLASSES)
    torch.manual_seed(11)
    made = ViLBERT(dataclasses.replace(config, **(SMALL | changes)), VOCAB).eval()
    for name, value in made.named_parameters():  # biases and norms too
        torch.nn.init.normal_(value, float(name.endswith("norm.weight")), 0.3)
    return made


SAMPLES = [made(0), made(1, regions=2, length=11), made(2, regions=9, length=1)]


# ------------------------------------------------------------------------------------------------- dynamic attention


@torch.no_grad()
def by_the_sheet(theirs: dict[str, Tensor], config: Any, example: Example) -> tuple[Tensor, Tensor]:
    """Both streams of one document, from the authors' tensors, as sections 2 and 3 of the paper's code read; the whole picture is the last region."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, theirs[f"{name}.weight"], theirs[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], theirs[f"{name}.weight"], theirs[f"{name}.bias"], 1e-12)

    def heads(x: Tensor, count: int) -> Tensor:
        return x.view(len(x), count, -1).transpose(0, 1)

    def attention(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        q, k, v = (heads(x, count) for x in (q, k, v))
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(0, 1).reshape(q.shape[1], -1)

    def after(name: str, x: Tensor, mixed: Tensor) -> Tensor:
        x = norm(f"{name}.attention.output.LayerNorm", x + linear(f"{name}.attention.output.dense", mixed))
        return forward(name, x, "intermediate", "output")

    def forward(name: str, x: Tensor, up: str, down: str) -> Tensor:
        y = linear(f"{name}.{down}.dense", F.gelu(linear(f"{name}.{up}.dense", x)))
        return norm(f"{name}.{down}.LayerNorm", x + y)

    def own(name: str, x: Tensor, count: int, said: Tensor | None = None) -> Tensor:
        q, k, v = (linear(f"{name}.attention.self.{x_}", x) for x_ in ("query", "key", "value"))
        if said is not None and config.dynamic_attention:
            q = q * (1 + torch.sigmoid(linear(f"{name}.attention.self.dyLinear_q", said.mean(0))))
            k = k * (1 + torch.sigmoid(linear(f"{name}.attention.self.dyLinear_k", said.mean(0))))
        return after(name, x, attention(q, k, v, count))

    def meet(name: str, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        q1, k1, v1 = (linear(f"{name}.biattention.{x}1", v) for x in ("query", "key", "value"))
        q2, k2, v2 = (linear(f"{name}.biattention.{x}2", t) for x in ("query", "key", "value"))
        count = config.bi_num_attention_heads
        for_text, for_vision = attention(q2, k1, v1, count), attention(q1, k2, v2, count)
        v = norm(f"{name}.biOutput.LayerNorm1", v + linear(f"{name}.biOutput.dense1", for_vision))
        t = norm(f"{name}.biOutput.LayerNorm2", t + linear(f"{name}.biOutput.dense2", for_text))
        return forward(name, v, "v_intermediate", "v_output"), forward(name, t, "t_intermediate", "t_output")

    text, regions = example.text, example.regions
    assert text is not None and regions is not None
    table = [theirs[f"bert.embeddings.{x}_embeddings.weight"] for x in ("word", "position", "token_type")]
    rows = zip(table, (text.ids, text.position_ids, text.segment_ids), strict=True)
    t = norm("bert.embeddings.LayerNorm", sum(x[torch.from_numpy(i)] for x, i in rows))  # type: ignore[arg-type]
    boxes = torch.from_numpy(regions.boxes).float()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    v = linear("bert.v_embeddings.image_embeddings", torch.from_numpy(regions.feats).float())
    v = v + linear("bert.v_embeddings.image_location_embeddings", torch.cat([boxes, area[:, None]], 1))
    v = norm("bert.v_embeddings.LayerNorm", v)
    t_start = v_start = 0
    for k, (v_id, t_id) in enumerate(zip(config.v_biattention_id, config.t_biattention_id, strict=True)):
        for i in range(t_start, t_id):
            t = own(f"bert.encoder.layer.{i}", t, config.num_attention_heads)
        for i in range(v_start, v_id):
            v = own(f"bert.encoder.v_layer.{i}", v, config.v_num_attention_heads, t)
        v, t = meet(f"bert.encoder.c_layer.{k}", v, t)
        v_start, t_start = v_id, t_id
    for i in range(v_start, config.v_num_hidden_layers):
        v = own(f"bert.encoder.v_layer.{i}", v, config.v_num_attention_heads, t)
    for i in range(t_start, config.num_hidden_layers):
        t = own(f"bert.encoder.layer.{i}", t, config.num_attention_heads)
    return t, v


def test_words_scale_the_regions_attention() -> None:
    dynamic = system(dynamic_attention=True)
    theirs = ViLBERT.keys.to_theirs(dynamic.state_dict())
    assert theirs["bert.encoder.v_layer.2.attention.self.dyLinear_k.weight"].shape == (16, 24)
    examples = [dynamic.lay_out(x) for x in SAMPLES]
    batch = pack(examples)
    with torch.no_grad():
        found = dynamic.encode(batch)
        wanted = [by_the_sheet(theirs, dynamic.config, x) for x in examples]
    torch.testing.assert_close(found.text, torch.cat([t for t, _ in wanted]), atol=2e-5, rtol=0)
    torch.testing.assert_close(found.visual, torch.cat([v for _, v in wanted]), atol=2e-5, rtol=0)
    without = system()
    without.load_state_dict({k: v for k, v in dynamic.state_dict().items() if "gates" not in k})
    with torch.no_grad():
        assert (without.encode(batch).pooled - found.pooled).abs().max() > 1e-2


def test_a_tuned_model_that_reads_few_rows_gives_the_same() -> None:
    dynamic = system(dynamic_attention=True)
    batch = pack([dynamic.lay_out(x) for x in SAMPLES])
    rows = {"text": torch.tensor([0, 9, 22]), "regions": torch.tensor([2, 7])}
    with torch.no_grad():
        x, v = dynamic.words(batch.text), dynamic.regions(batch.regions)
        whole = dynamic.encoder(x, v, batch.text.packing, batch.regions.packing)
        some = dynamic.encoder(x, v, batch.text.packing, batch.regions.packing, rows)
    torch.testing.assert_close(some[0][rows["text"]], whole[0][rows["text"]])
    torch.testing.assert_close(some[1][rows["regions"]], whole[1][rows["regions"]])
    assert torch.isfinite(some[1][batch.regions.packing.last]).all()


def test_weights_say_whether_the_attention_is_dynamic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(ViLBERT.recipes["base"].config, **SMALL)
    recipe = dataclasses.replace(ViLBERT.recipes["base"], config=small)
    monkeypatch.setattr(ViLBERT, "recipes", {**ViLBERT.recipes, "small": recipe})
    for dynamic in (True, False):
        net = system(dynamic_attention=dynamic)
        write_weights(tmp_path / "theirs.bin", ViLBERT.keys.to_theirs(net.state_dict()))
        state, config = read_ours(ViLBERT, "vilbert", tmp_path / "theirs.bin", "small")
        assert config == net.config
        assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


# --------------------------------------------------------------------------------------------------------- fast_mode


def watched(model: ViLBERT, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Documents that the first layer of words, that of regions and the first meeting read."""
    read = dict.fromkeys(("words", "regions", "meetings"), 0)
    layers = {"words": model.encoder.layers[0], "regions": model.encoder.visual_layers[0]}
    for name, layer in (layers | {"meetings": model.encoder.meetings[0]}).items():

        def counted(*rows: Any, name: str = name, forward: Any = layer.forward, **more: Any) -> Any:
            read[name] += next(x for x in rows if isinstance(x, Packing)).documents
            return forward(*rows, **more)

        monkeypatch.setattr(layer, "forward", counted)
    return read


@pytest.mark.parametrize("dynamic", [False, True])
def test_words_are_read_once_for_all_pictures(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' `fast_mode`, whose text goes alone up to the first meeting; where words scale the regions' attention, no region does."""
    model = system(dynamic_attention=dynamic)
    texts, pictures = [made(i, length=2 + 3 * i) for i in range(4)], [made(20 + i, 3 + i).pictures[0] for i in range(3)]
    read = watched(model, monkeypatch)
    _, scores = match(model, texts, pictures, QUIET)
    assert read == {"words": 4, "regions": 12 if dynamic else 3, "meetings": 12}
    theirs = ViLBERT.keys.to_theirs(model.state_dict())

    def map_of(name: str, x: Tensor) -> Tensor:
        return F.linear(x, theirs[f"{name}.weight"], theirs[f"{name}.bias"])

    for i, text in enumerate(texts):
        for j, picture in enumerate(pictures):
            t, v = by_the_sheet(theirs, model.config, model.lay_out(dataclasses.replace(text, pictures=(picture,))))
            both = map_of("bert.t_pooler.dense", t[0]).relu() * map_of("bert.v_pooler.dense", v[-1]).relu()
            true, other = map_of("cls.bi_seq_relationship", both)
            assert float(true - other) == pytest.approx(scores[i, j], abs=2e-5)
    assert np.ptp(scores) > 0.1


def test_a_tuned_ranking_reads_words_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = start(system(task_specific_tokens=True), ViLBERT.finetune["retrieval"], "retrieval").eval()
    texts, pictures = [made(i, length=2 + i) for i in range(5)], [made(20 + i, 3 + i).pictures[0] for i in range(4)]
    read = watched(tuned.system, monkeypatch)
    _, scores = match(tuned, texts, pictures, QUIET)
    assert read == {"words": 5, "regions": 4, "meetings": 20}
    pairs = [dataclasses.replace(x, key=f"{x.key} {y.name}", pictures=(y,)) for x in texts for y in pictures]
    with torch.inference_mode():
        wanted = tuned.match_scores(tuned.encode(pack([tuned.lay_out(x) for x in pairs])))
    np.testing.assert_allclose(scores.ravel(), wanted.numpy(), atol=2e-5, rtol=0)
    assert np.ptp(scores) > 0.02


# ------------------------------------------------------------------------------------------------------ fixed layers


def gradients(model: ViLBERT, batch: Batch) -> dict[str, Tensor]:
    losses, _ = model(batch)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    return {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


def test_fixed_layers_and_what_is_below_them_get_no_gradient() -> None:
    whole, fixed = system(), system(fixed_t_layer=2, fixed_v_layer=1)
    fixed.load_state_dict(whole.state_dict())
    draw = lambda: made(9)  # noqa: E731
    hidden = [whole.hide(x, "mlm+mrc_kl+itm", np.random.default_rng(i), draw) for i, x in enumerate(SAMPLES)]
    batch = pack(hidden)
    every, some = gradients(whole, batch), gradients(fixed, batch)
    below = ("encoder.layers.0.", "encoder.layers.1.", "encoder.visual_layers.0.", "regions.", "words.")
    kept = {name for name in every if not name.startswith(below)} | {"words.word.weight"}
    assert set(some) == kept
    for name in kept - {"words.word.weight"}:
        torch.testing.assert_close(some[name], every[name])
    # the word table: only as what hidden words are told by, as the authors' no_grad leaves it
    alone = system()
    alone.load_state_dict(whole.state_dict())
    text, regions = batch.text, batch.regions
    assert text is not None and regions is not None
    with torch.no_grad():
        x, v = alone.words(text), alone.regions(regions)
    encoded = alone.encoder(x, v, text.packing, regions.packing)
    said = Encoded(*encoded, regions.packing, whole.encode(batch).pooled.detach())
    alone.losses(said, batch)["mlm"].backward()
    torch.testing.assert_close(some["words.word.weight"], alone.words.word.weight.grad)
    assert (every["words.word.weight"] - some["words.word.weight"]).abs().max() > 1e-3


def test_fixed_layers_stay_fixed_in_a_task_and_all_train_without() -> None:
    assert all(x.requires_grad for name, x in system().named_parameters() if not name.startswith("idle."))
    tuned = begin(system(fixed_t_layer=1, task_specific_tokens=True), ViLBERT.finetune["vqa"])
    still = {name.removeprefix("system.") for name, x in tuned.named_parameters() if not x.requires_grad}
    still = {name for name in still if not name.startswith("idle.")}
    assert {name.rpartition(".")[0].split(".attention")[0] for name in still} >= {
        "words.task",
        "words.position",
        "words.norm",
    }
    assert not any(name.startswith(("encoder.layers.1", "regions.", "encoder.visual")) for name in still)
    assert any(name.startswith("encoder.layers.0.") for name in still)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fixed_t_layer": 3}, "3 layers of words cannot be fixed: 2 run before the first meeting"),
        ({"fixed_v_layer": 2}, "2 layers of regions cannot be fixed: 1 run"),
        ({"fixed_v_layer": -1}, "-1 layers of regions"),
    ],
)
def test_layers_past_the_first_meeting_cannot_be_fixed(changes: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        system(**changes)


# ----------------------------------------------------------------------------------------------------------- RoBERTa


def _config(pieces: int) -> RobertaConfig:
    numbers = {x: SMALL[x] for x in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    more = {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-12}
    return RobertaConfig(vocab_size=pieces, **more, **numbers)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small RoBERTa: vocab.json, merges.txt, weights."""
    path = tmp_path_factory.mktemp("roberta")
    cutter = ByteLevelBPETokenizer()
    lines = [t for i in range(40) for t in WorldSource(count=40)[i].texts]
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    cutter.train_from_iterator([*lines, "A naïve Dog's café, déjà-vu!"], vocab_size=400, special_tokens=specials)
    cutter.save_model(str(path))
    torch.manual_seed(3)
    net = RobertaForMaskedLM(_config(len(json.loads((path / "vocab.json").read_text())))).eval()
    for value in net.parameters():
        torch.nn.init.normal_(value, 0.02, 0.3)
    write_weights(path / "roberta.safetensors", {k: v.clone() for k, v in net.state_dict().items()})
    return path


TEXTS = ("a small pink square above a circle", "A naïve Dog's café,  déjà-vu!", " blank first", "日本 \U0001f600 !")


def test_bytes_are_merged_as_robertas_are(roberta: Path, tmp_path: Path) -> None:
    vocab = Vocab.read(roberta / "vocab.json")
    assert isinstance(vocab, BytePieces)
    theirs = RobertaTokenizerFast.from_pretrained(str(roberta))
    for text in TEXTS:
        pieces = vocab.encode(text)
        wanted = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        assert pieces.ids.tolist() == wanted["input_ids"]
        assert vocab.decode(pieces.ids) == text
        assert pieces.spans.tolist() == [list(x) for x in wanted["offset_mapping"]]
    pieces = vocab.encode(TEXTS[0])
    words = [TEXTS[0][a:b] for a, b in pieces.spans]
    assert "".join(words).replace(" ", "") == TEXTS[0].replace(" ", "")
    assert pieces.words.tolist() == sorted(pieces.words.tolist())
    assert pieces.words[-1] == 6  # seven words
    assert (vocab.cls, vocab.pad, vocab.sep, vocab.unk) == (0, 1, 2, 3)
    vocab.write(tmp_path / "vocab.txt")
    again = Vocab.read(tmp_path / "vocab.txt")
    assert again.tokens == vocab.tokens
    assert all(again.encode(x).ids.tolist() == vocab.encode(x).ids.tolist() for x in TEXTS)


def test_what_is_no_vocabulary_of_bytes_is_refused(roberta: Path, tmp_path: Path) -> None:
    whole = json.loads((roberta / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(whole))
    with pytest.raises(BadInput, match=r"merges\.txt: cannot be read"):
        Vocab.read(tmp_path / "vocab.json")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(BadInput, match="the merge 'a b c' is not of two pieces that give a third"):
        Vocab.read(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text(json.dumps(whole | {"<s>": 7}))
    with pytest.raises(BadInput, match="does not number its pieces from 0"):
        Vocab.read(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        Vocab.read(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "a": 1}))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(BadInput, match=r"special token <pad> is missing"):
        Vocab.read(tmp_path / "vocab.json")


def test_positions_begin_at_two_and_there_is_one_segment(roberta: Path) -> None:
    recipe = ViLBERT.recipes["roberta"]
    assert (recipe.config.vocab_size, recipe.config.max_position_embeddings) == (50265, 514)
    vocab = Vocab.read(roberta / "vocab.json")
    config = fit_config(dataclasses.replace(recipe.config, **SMALL), len(vocab), WIDTH, CLASSES)
    model = ViLBERT(dataclasses.replace(config, task_specific_tokens=True), vocab)
    text = model.lay_out(SAMPLES[0]).text
    assert text is not None
    assert text.position_ids.tolist() == list(range(2, 2 + len(text)))
    assert (text.ids[0], text.ids[-1]) == (vocab.cls, vocab.sep)
    asked = dataclasses.replace(SAMPLES[0], texts=("w1 w2", "w3", "w4", "w5", "w6"))
    text = model.lay_out(asked, "vcr", 2).text
    assert text is not None
    assert text.segment_ids.tolist() == [0, 1, *[0] * (len(text) - 2)]  # the task's row, then one segment
    plain = system().lay_out(asked, "vcr", 2).text
    assert plain is not None and plain.segment_ids.max() == 1
    assert plain.position_ids[0] == 0


def test_words_begin_as_roberta(roberta: Path) -> None:
    vocab, seen = (
        Vocab.read(roberta / "vocab.json"),
        intarsia.data.source.Provenance("made", WIDTH, ("background", "a")),
    )
    recipe = ViLBERT.recipes["roberta"]
    recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **SMALL))
    file = roberta / "roberta.safetensors"
    model, recipe, begun = from_bert(ViLBERT, recipe, vocab, seen, file)
    assert sorted([*begun.taken, *begun.left]) == sorted(read_weights(file))
    assert begun.left == ()
    assert recipe.config.max_position_embeddings == 66
    theirs = RobertaForMaskedLM.from_pretrained(None, config=_config(len(vocab)), state_dict=read_weights(file))
    pieces = vocab.encode(TEXTS[0])
    ids = np.array([vocab.cls, *pieces.ids, vocab.sep])
    rows = TextRows(ids, np.zeros(len(ids), np.int64), 2 + np.arange(len(ids)), np.full(len(ids), -1))
    text = pack([Example("a", rows)]).text
    assert text is not None
    model.eval()
    x = model.get_submodule("words")(text)
    with torch.no_grad():
        for layer in model.get_submodule("encoder.layers"):  # type: ignore[union-attr]
            x = layer(x, text.packing)
        wanted = theirs.eval()(torch.from_numpy(ids)[None], output_hidden_states=True)
        logits = model.get_submodule("word_head")(x, model.get_parameter("words.word.weight"))
    assert (x - wanted.hidden_states[-1][0]).abs().max() < 2e-5
    assert (logits - wanted.logits[0]).abs().max() < 1e-4


def test_a_roberta_is_for_recipes_that_say_so(roberta: Path) -> None:
    vocab, seen = (
        Vocab.read(roberta / "vocab.json"),
        intarsia.data.source.Provenance("made", WIDTH, ("background", "a")),
    )
    for name in ("base", "base_beta"):
        with pytest.raises(BadInput, match="is a roberta, the recipe of vilbert begins as a bert: name another --size"):
            from_bert(ViLBERT, ViLBERT.recipes[name], vocab, seen, roberta / "roberta.safetensors")


def test_the_command(roberta: Path, tmp_path: Path) -> None:
    order = ["pretrain", "vilbert", "--size", "roberta", "--data", "worlds:20", "--workers", "0", "--device", "cpu"]
    order += [
        "--schedule.steps",
        "1",
        "--schedule.warmup",
        "0",
        "--batching.rows",
        "400",
        "--out",
        str(tmp_path / "run"),
    ]
    order += [
        "--start",
        str(roberta / "roberta.safetensors"),
        "--vocab",
        str(roberta / "vocab.json"),
        "--config.fixed-t-layer",
        "2",
    ]
    order += ["--optim.lr", "0.1"]
    for name, value in SMALL.items():
        given = map(str, value) if isinstance(value, tuple) else [str(value)]
        order += [f"--config.{name.replace('_', '-')}", *given]
    main(order)
    model = intarsia.open("vilbert", weights=tmp_path / "run")
    assert isinstance(model.system.vocab, BytePieces)
    assert model.system.config.model == "roberta"
    before, after = read_weights(roberta / "roberta.safetensors"), model.system.state_dict()
    for i, same in ((1, True), (2, False)):
        layer = before[f"roberta.encoder.layer.{i}.output.dense.weight"]
        assert torch.equal(after[f"encoder.layers.{i}.down.weight"], layer) == same
