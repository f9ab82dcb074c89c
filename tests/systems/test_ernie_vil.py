"""What ERNIE-ViL hides, lays out and reads: nodes whole, anchors kept, broken pairs, graphs out of files, weights in Paddle's folders."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.batch import Example, Pick, Picks
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.model import open as open_model
from intarsia.objectives import sgp
from intarsia.pack import pack
from intarsia.system import begin, fit_config
from intarsia.systems.ernie_vil import ERNIEViL
from intarsia.tasks.benchmarks import find
from intarsia.text import Vocab
from intarsia.text_graph import read_graph
from intarsia.tuning_runs import begin as tune
from intarsia.tuning_runs import open_items
from intarsia.weights import paddle
from intarsia.worlds import WorldSource
from intarsia.worlds.twins import write_twin

WORLD = WorldSource(count=60)
VOCAB = Vocab.learn([x for i in range(60) for x in WORLD[i].texts])
ALL = "mlm+mrc_kl+itm+"


@cache
def system(**changes: Any) -> ERNIEViL:
    about = WORLD.provenance
    config = fit_config(ERNIEViL.recipes["tiny"].config, len(VOCAB), about.width, len(about.classes))
    torch.manual_seed(0)
    return ERNIEViL(replace(config, **changes), VOCAB).eval()


def picked(example: Example, goal: str) -> Pick:
    found = example.targets[goal]
    assert isinstance(found, Pick)
    return found


def within(count: int, of: int, rate: float) -> bool:
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize("goal", sgp.GOALS)
def test_hidden_nodes_are_words_of_the_captions_graph(goal: str) -> None:
    true = 0
    for seed in range(400):
        rng, sample, other = np.random.default_rng(seed), WORLD[seed % 60], WORLD[(seed + 7) % 60]
        example = system(asks_broken=True).hide(sample, ALL + goal, rng, lambda other=other: other)  # type: ignore[misc]
        label = example.targets["itm"]
        true += int(label)
        said = sample if label else other
        graph, pieces, plain = read_graph(said.texts[0]), VOCAB.encode(said.texts[0]), system().lay_out(said)
        assert plain.text is not None
        assert example.text is not None
        nodes = [set(sgp.rows_of(span, pieces).tolist()) for span, _ in sgp.nodes(graph, goal)]
        rows, others = set(picked(example, goal).rows.tolist()), set(picked(example, "mlm").rows.tolist())
        assert rows == set().union(*(x for x in nodes if x <= rows))
        assert bool(rows) == bool(nodes)
        assert not rows & others
        stay = [x for i, (_, by) in enumerate(sgp.nodes(graph, goal)) if nodes[i] <= rows for x in by]
        anchors = {row for span in stay for row in sgp.rows_of(span, pieces).tolist()}
        assert not anchors & (rows | others)
        hidden = sorted(rows | others)
        assert (example.text.words[hidden] >= 0).all()  # never [CLS] or [SEP]
        rest = np.setdiff1d(np.arange(len(plain.text)), hidden)
        np.testing.assert_array_equal(example.text.ids[rest], plain.text.ids[rest])
        for name in (goal, "mlm"):
            np.testing.assert_array_equal(picked(example, name).labels, plain.text.ids[picked(example, name).rows])
    assert within(true, 400, 0.5)


def test_the_whole_picture_tells_nothing_of_hidden_regions() -> None:
    found = of = 0
    for seed in range(600):
        example = system().hide(WORLD[seed % 60], "mrc_kl", np.random.default_rng(seed), lambda: WORLD[1])
        regions, rows = example.regions, picked(example, "mrc_kl").rows
        assert regions is not None
        count = len(regions) - 1
        assert (rows < count).all()
        assert not regions.masked[-1]
        kept = regions.feats[:-1][~regions.masked[:-1]].astype(np.float32)
        mean = kept.mean(0) if len(kept) else np.zeros(regions.feats.shape[1])
        np.testing.assert_allclose(regions.feats[-1], mean, atol=1e-2)
        found, of = found + len(rows), of + count
    assert within(found, of, 0.15)


def test_broken_pairs_are_asked_for_nothing_where_so_configured() -> None:
    asked: dict[tuple[bool, bool], int] = {}
    masked: dict[tuple[bool, bool], int] = {}
    for asks in (True, False):
        for seed in range(200):
            example = system(asks_broken=asks).hide(
                WORLD[seed % 60], ALL + "sgp_object", np.random.default_rng(seed), lambda: WORLD[3]
            )
            key = asks, bool(example.targets["itm"])
            asked[key] = asked.get(key, 0) + sum(len(picked(example, x).rows) for x in ("mlm", "mrc_kl", "sgp_object"))
            assert example.text is not None
            masked[key] = masked.get(key, 0) + int((example.text.ids == VOCAB.mask).sum())
    assert masked[False, False] > 50  # hidden all the same
    assert asked[True, True] and asked[True, False] and asked[False, True]
    assert asked[False, False] == 0


def test_one_kind_of_node_is_drawn_a_step() -> None:
    mix = ERNIEViL.recipes["base"].mix
    goals = [mix.goal(0, step, 3000) for step in range(3000)]
    assert all(goal.startswith(ALL) for goal in goals)
    for kind in sgp.GOALS:
        assert within(sum(goal.endswith(kind) for goal in goals), 3000, 1 / 3)


def test_graphs_of_another_parser_are_read(tmp_path: Path) -> None:
    path, sample = tmp_path / "graphs.jsonl", WORLD[0]
    text = sample.texts[0]
    line = {"text": text, "objects": [[0, len(text)]], "attributes": [], "relations": []}
    path.write_text(json.dumps(line) + "\n")
    reader = system(graphs=str(path), sgp_rate=1.0)
    example = reader.hide(sample, "sgp_object", np.random.default_rng(0), lambda: sample)
    assert example.text is not None
    assert len(picked(example, "sgp_object").rows) == len(example.text) - 2
    with pytest.raises(BadInput, match=f"no graph of the caption .* of sample {WORLD[1].key}"):
        reader.hide(WORLD[1], "sgp_object", np.random.default_rng(0), lambda: sample)


def test_captions_of_other_languages_and_other_goals_are_refused() -> None:
    foreign = replace(WORLD[0], language="de")
    with pytest.raises(BadInput, match="no rules read graphs of language 'de'"):
        system().hide(foreign, "sgp_object", np.random.default_rng(0), lambda: foreign)
    with pytest.raises(BadInput, match="ernie_vil has no objective 'mrfr'"):
        system().hide(WORLD[0], "mlm+mrfr", np.random.default_rng(0), lambda: foreign)


def test_choices_and_long_questions() -> None:
    text = WORLD[0].texts[0]
    pieces = len(VOCAB.encode(text))
    sample = replace(WORLD[0], texts=(text, "red", "a blue", "green", "pink"), links=())
    long = system(max_pieces=100)
    for task, parts in (("vcr", (pieces, 2)), ("vcr_qar", (pieces, 1, 1))):
        example = long.lay_out(sample, task, 1)
        assert example.text is not None
        seps = np.flatnonzero(example.text.ids == VOCAB.sep)
        assert np.diff(seps, prepend=0).tolist() == [x + 1 for x in parts]
        first = seps[-2]
        assert (example.text.segment_ids[: first + 1] == 0).all()
        assert (example.text.segment_ids[first + 1 :] == 1).all()
    with pytest.raises(BadInput, match="has 1 texts, vcr 0 needs 2"):
        long.lay_out(WORLD[0], "vcr")
    short = system(max_pieces=3)
    cut = short.lay_out(WORLD[0], "vqa")
    assert cut.text is not None
    assert cut.text.ids.tolist() == [VOCAB.cls, *VOCAB.encode(text).ids[:3], VOCAB.sep]


@pytest.mark.parametrize("task", list(ERNIEViL.finetune))
def test_every_task_trains(task: str) -> None:
    finetune = ERNIEViL.finetune[task]
    tuned = begin(system(), replace(finetune, config={"max_pieces": 60}))
    texts = (WORLD[0].texts[0], "red", "blue", "green", "pink", "small")
    forms = {"vcr": 4, "vcr_qar": 4, "retrieval": 21}.get(task, 1)
    samples = [replace(WORLD[i], texts=texts if "vcr" in task else WORLD[i].texts, links=()) for i in range(3)]
    documents = [(x, form) for x in samples for form in range(forms)]
    batch = pack([tuned.system.lay_out(x, task, form) for x, form in documents])
    assert batch.regions is not None
    rows = batch.regions.packing.rows
    targets = {
        "vqa": {"vqa": torch.rand(3, 3129)},
        "re": {"re": Picks(torch.arange(rows), torch.rand(rows))},
        "vcr": {"vcr": torch.arange(12) % 4 == 1},
    }
    batch = replace(batch, targets=targets.get(task.removesuffix("_qar"), {}))
    loss, scores = tuned.train()(batch)
    loss.backward()
    assert loss.isfinite()
    assert scores.isfinite().all()
    name = {"vcr": "vcr_qa_fc", "vcr_qar": "vcr_qar_fc"}.get(task, "")
    head = [x for key, x in tuned.head.named_parameters() if key.startswith(name + "." if name else "")]
    assert head
    assert all(x.grad is not None and x.grad.any() for x in head)


def test_published_weights_open_without_pretraining_heads(tmp_path: Path) -> None:
    state = {k: v for k, v in system().state_dict().items() if not k.startswith(ERNIEViL.keys.optional)}
    folder = tmp_path / "params"
    folder.mkdir()
    for name, value in ERNIEViL.keys.to_theirs(state).items():
        (folder / name).write_bytes(paddle.write_variable(value))
    main(["convert", "ernie_vil", str(folder), str(tmp_path / "ours.safetensors"), "--size", "tiny"])
    main(["convert", "ernie_vil", str(tmp_path / "ours.safetensors"), str(tmp_path / "back.tar.gz"), "--to", "authors"])
    back = paddle.read_folder(tmp_path / "back.tar.gz")
    assert {key: paddle.write_variable(value) for key, value in back.items()} == {
        x.name: x.read_bytes() for x in folder.iterdir()
    }
    VOCAB.write(tmp_path / "vocab.txt")
    with pytest.warns(UserWarning, match="holds no word_head, region_head, match_head: they are random"):
        model = open_model("ernie_vil", "tiny", folder, tmp_path / "vocab.txt")
    batch = pack([system().lay_out(WORLD[0])])
    with torch.inference_mode():
        assert torch.equal(model.system.encode(batch).pooled, system().encode(batch).pooled)


def test_refcocos_large_model_drops_out_more(tmp_path: Path) -> None:
    write_twin("refcoco", tmp_path, 4, 2, level=0)
    source = open_items(find("refcoco"), tmp_path, str(tmp_path / "regions"), "train")
    for size, rate in (("large", 0.2), ("base", 0.0)):  # tiny numbers drop nothing by themselves
        tuned, recipe = tune("ernie_vil", "re", size, None, None, source, (), tiny=True)
        rates = {
            x.p
            for name, x in tuned.system.named_modules()
            if isinstance(x, torch.nn.Dropout) and "attention" not in name
        }
        assert rates == {rate}
        assert {recipe.config.hidden_dropout_prob, recipe.config.v_hidden_dropout_prob} == {rate}


def test_heads_are_drawn_as_the_authors_draw_them() -> None:
    torch.manual_seed(1)
    asks, ranks = (ERNIEViL.finetune[x].task.head(system().config) for x in ("vqa", "retrieval"))
    for layer in (asks[1], asks[4]):  # type: ignore[index]
        bound = (3 / sum(layer.weight.shape)) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    bound = (6 / sum(ranks.weight.shape)) ** 0.5  # type: ignore[arg-type, union-attr]
    assert 0.8 * bound < ranks.weight.abs().max() <= bound  # type: ignore[operator]
    biases = [ERNIEViL.finetune["retrieval"].task.head(system().config).bias.item() for _ in range(40)]  # type: ignore[operator, union-attr]
    assert -1 <= min(biases) < -0.7
    assert 0.7 < max(biases) < 1
