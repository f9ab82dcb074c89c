"""The cloze test: which nodes are hidden, what counts as named against a count one pair at a time, and the command."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.evaluate.cloze import evaluate_cloze
from intarsia.evaluate.running import QUIET
from intarsia.model import open as open_model
from intarsia.pack import pack
from intarsia.system import System
from intarsia.systems import find as find_system
from intarsia.tasks.benchmarks import Annotated, cloze, find
from intarsia.text_graph import TextGraph, read_graph
from intarsia.train.start import captions, fresh
from intarsia.tuning_runs import open_items
from intarsia.worlds.twins import write_twin


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("flickr")
    write_twin("flickr30k", data, 16, 30, level=0)
    return data


def opened(folder: Path, split: str = "val") -> Annotated:
    return open_items(find(cloze.NAME), folder, str(folder / "regions"), split)


def test_a_node_of_each_caption_as_many_of_each_kind(folder: Path) -> None:
    found = cloze.read(folder, "all", each=20)
    assert Counter(x.kind for x in found.gold.values()) == {"objects": 20, "attributes": 20, "relations": 20}
    assert len({x.key for x in found.items}) == 60
    assert set(found.gold) == {x.key for x in found.items}
    for item in found.items:
        kind, *span = found.gold[item.key]
        graph = read_graph(item.texts[0])
        spans = {
            "objects": list(graph.objects),
            "attributes": [x for _, x in graph.attributes],
            "relations": [x for _, x, _ in graph.relations],
        }
        assert tuple(span) in spans[kind]
    assert cloze.read(folder, "all", each=20) == found
    some = cloze.read(folder, "val")
    assert {x.pictures[0] for x in some.items}.isdisjoint(x.pictures[0] for x in cloze.read(folder, "train").items)
    with pytest.raises(BadInput, match="no split 'minival'"):
        cloze.read(folder, "minival")


def test_nodes_over_their_own_objects_are_not_hidden() -> None:
    graph = TextGraph(((0, 3), (10, 13)), ((0, (2, 5)), (1, (6, 9))), ((0, (4, 10), 1), (0, (9, 11), 1)))
    assert cloze.nodes_of(graph) == {"objects": [(0, 3), (10, 13)], "attributes": [(6, 9)], "relations": [(4, 10)]}


def test_graphs_of_another_parser_are_read_where_they_lie(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_flickr30k.json").write_text((folder / "dataset_flickr30k.json").read_text())
    texts = {x.texts[0] for x in find("flickr30k").read(tmp_path, "val").items}
    lines = [{"text": x, "objects": [[0, 1]], "attributes": [], "relations": []} for x in texts]
    (tmp_path / "graphs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = cloze.read(tmp_path, "val")
    assert set(found.gold.values()) == {("objects", 0, 1)}
    (tmp_path / "graphs.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(BadInput, match=r"graphs.jsonl: no graph of the caption"):
        cloze.read(tmp_path, "val")


@pytest.fixture(scope="module")
def system(folder: Path) -> System:
    """Untrained, but with a head that is not even: it names some nodes."""
    source, cls = opened(folder), find_system("ernie_vil")
    assert source.provenance is not None
    found, _ = fresh(cls, cls.recipes["tiny"], captions(source, cls.specials), source.provenance)
    torch.manual_seed(3)
    for x in found.parameters():
        x.data += 0.2 * torch.randn_like(x)
    return found.eval()


def test_numbers_are_those_of_a_count_pair_by_pair(folder: Path, system: System) -> None:
    source = opened(folder)
    found, said = evaluate_cloze(system, find(cloze.NAME), source, QUIET)
    hits, truth = defaultdict[str, list[list[bool]]](list), defaultdict[str, list[str]](list)
    for i in range(len(source)):
        sample = source[i]
        kind, start, end = source.annotations.gold[sample.key]
        pieces = system.vocab.encode(sample.texts[0])
        words = {int(w) for w, (a, b) in zip(pieces.words, pieces.spans, strict=True) if a < end and b > start}
        rows = [1 + j for j, w in enumerate(pieces.words) if int(w) in words]
        example = system.lay_out(sample)
        assert example.text is not None
        right = example.text.ids[rows].tolist()
        example.text.ids[rows] = system.vocab.mask
        batch = pack([example])
        with torch.inference_mode():
            logits = system.word_logits(system.encode(batch), torch.tensor(rows))
        order = logits.argsort(-1, descending=True).tolist()
        assert [x[:5] for x in order] == said[sample.key].tolist()
        hits[kind].append(
            [
                all(x[0] == y for x, y in zip(order, right, strict=True)),
                all(y in x[:5] for x, y in zip(order, right, strict=True)),
            ]
        )
        truth[kind].append(" ".join(map(str, right)))
    every = [x for kind in hits.values() for x in kind]
    assert found.numbers["top-1"] == pytest.approx(np.mean([x[0] for x in every]))
    assert found.numbers["top-5"] == pytest.approx(np.mean([x[1] for x in every]))
    assert 0 < found.numbers["top-5"] < 1
    for kind, x in hits.items():
        assert found.numbers[f"{kind}, top-1"] == pytest.approx(np.mean([y[0] for y in x]))
        assert found.numbers[f"{kind}, top-5"] == pytest.approx(np.mean([y[1] for y in x]))
        assert f"{len(x)} {kind}" in found.told
    common = sum(Counter(x).most_common(1)[0][1] for x in truth.values())
    assert found.chance == pytest.approx(common / len(every))
    assert found.items == len(every)
    assert found.blind is not None


def test_what_predicts_no_words_is_refused(folder: Path, system: System) -> None:
    source = opened(folder)
    cls = find_system("wenlan")
    assert source.provenance is not None
    towers, _ = fresh(cls, cls.recipes["tiny"], captions(source, cls.specials), source.provenance)
    with pytest.raises(BadInput, match="does not predict any"):
        evaluate_cloze(towers, find(cloze.NAME), source, QUIET)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(folder)
    run, tuned = str(tmp_path / "run"), str(tmp_path / "tuned")
    tiny = ["--workers", "0", "--device", "cpu"]
    main(
        ["pretrain", "ernie_vil", "--size", "tiny", "--data", "worlds:8", "--out", run, "--schedule.steps", "1", *tiny]
    )
    vocab = ["--weights", run]
    asked = ["--benchmark", cloze.NAME, "--data", data, "--regions", f"{data}/regions"]
    capsys.readouterr()
    with pytest.raises(SystemExit):  # features of scenes drawn, and of attributes
        main(["score", run, *asked])
    assert capsys.readouterr().err
    other = tmp_path / "drawn"
    write_twin("flickr30k", other, 4, 8, level=1)
    asked = ["--benchmark", cloze.NAME, "--data", str(other), "--regions", f"{other}/regions"]
    main(["score", run, *asked])
    shown = capsys.readouterr().out
    assert "top-1, without the picture" in shown
    told = json.loads((tmp_path / "run/score-val.json").read_text())
    assert told["items"] == len(cloze.read(other, "val").items)
    assert set(told["numbers"]) >= {"top-1", "top-5", "objects, top-1", "relations, top-5"}
    assert open_model("ernie_vil", weights=tmp_path / "run").system.predicts_words
    tune = ["--data", str(other), "--regions", f"{other}/regions", "--out", tuned, "--steps", "1", "--rows", "400"]
    main(["finetune", "ernie_vil", "retrieval", *vocab, *tune, "--samples", "1", "--negatives", "ei*2", *tiny])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["score", tuned, *asked])
    assert caught.value.code == 2
    assert "tuned for flickr30k; flickr30k-cloze asks for cloze" in capsys.readouterr().err
