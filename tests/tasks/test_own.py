"""VisualBERT and UNITER on a task's own texts, between captions and the task, from the benchmark's files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.batch import Picture, Sample
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.model import read_ours, read_recipe
from intarsia.system import System, begin
from intarsia.systems import find
from intarsia.tasks.own import own_text
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import read_weights


@pytest.mark.parametrize(
    ("task", "goals", "split"),
    [("vqa", {"mlm"}, "val"), ("nlvr2", {"mlm", "itm"}, "dev"), ("vcr", {"mlm", "itm"}, "val")],
)
def test_a_run_goes_on_on_a_tasks_own_texts(task: str, goals: set[str], split: str, tmp_path: Path) -> None:
    data, run = str(tmp_path / "twin"), tmp_path / "run"
    main(["twin", task, "--out", data, "--train", "8", "--val", "4", "--level", "0"])
    few = ["--schedule.steps", "2", "--schedule.warmup", "1", "--workers", "0", "--device", "cpu"]
    small = [x for k in ("hidden-size", "intermediate-size") for x in (f"--config.{k}", "16")]
    small += ["--config.num-hidden-layers", "1", "--config.num-attention-heads", "2"]
    start = ["pretrain", "visualbert", "--data", data, "--benchmark", task, "--regions", f"{data}/regions"]
    main([*start, "--size", "tiny", "--out", str(tmp_path / "first"), *few, *small])
    own = [
        "pretrain",
        "visualbert",
        "--size",
        f"own_{task}",
        "--weights",
        str(tmp_path / "first/model.safetensors"),
        "--benchmark",
        task,
    ]
    own += ["--vocab", str(tmp_path / "first/vocab.txt"), "--data", data, "--out", str(run), "--valid-split", split]
    with pytest.raises(SystemExit) as caught:
        main([*own, *few])
    assert caught.value.code == 2
    assert not run.exists()
    main([*own, "--regions", f"{data}/regions", *few])
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert {x for line in lines for x in line.get("loss", {})} == goals
    config = read_recipe(find("visualbert"), "visualbert", run).config
    assert (config.own, config.hidden_size) == (task, 16)


def test_answers_are_drawn_by_their_scores_into_one_text() -> None:
    asked = Sample("q", ("is it w1 ?",), answers=(("yes", 0.9), ("no", 0.3)))
    said = Counter(own_text("vqa", asked, np.random.default_rng(i))[0].texts for i in range(400))
    assert set(said) == {("is it w1 ? yes",), ("is it w1 ? no",)}
    assert abs(said["is it w1 ? yes",] - 300) < 5 * (400 * 0.75 * 0.25) ** 0.5
    with pytest.raises(BadInput, match="sample q: has no answer"):
        own_text("vqa", replace(asked, answers=()), np.random.default_rng(0))


def test_a_choice_is_true_if_it_is_the_right_one_and_a_sentence_if_it_says_true() -> None:
    asked = Sample("q", ("why", "a0", "a1", "a2", "a3"), answers=(("2", 1.0),))
    drawn = [own_text("vcr", asked, np.random.default_rng(i))[2:] for i in range(400)]
    assert all(true == (form == 2) for form, true in drawn)
    assert all(abs(sum(x == i for x, _ in drawn) - 100) < 5 * 75**0.5 for i in range(4))
    for word, true in (("True", 1), ("False", 0)):
        pair = Sample("n", ("both",), answers=((word, 1.0),))
        assert own_text("nlvr2", pair, np.random.default_rng(0))[1:] == ("nlvr2", 0, true)


def test_the_recipes_are_the_papers() -> None:
    recipes = find("visualbert").recipes
    assert [recipes[f"own_{x}"].optim.lr for x in ("vqa", "nlvr2", "vcr", "flickr")] == [5e-5] * 4
    assert recipes["own_vqa"].mix.share == recipes["own_flickr"].mix.share == {"mlm": 1}
    assert recipes["own_nlvr2"].mix.share == recipes["own_vcr"].mix.share == {"mlm+itm": 1}
    assert recipes["own_vcr"].schedule.warmup == int(0.1879 * recipes["own_vcr"].schedule.steps)
    for task in ("nlvr2", "vcr", "flickr"):
        mine, captions = recipes[f"own_{task}"].config, recipes[f"base_{task}"].config
        for name in ("feature_size", "box_numbers", "max_regions", "trunk", "trunk_frozen"):
            assert getattr(mine, name) == getattr(captions, name)
    assert recipes["base_nlvr2"].config.max_regions == 144


def _small(**changes: object) -> System:
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "feature_size": 3,
    }
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(60))])
    cls = find("uniter")
    return cls(replace(cls.recipes["own_vcr"].config, vocab_size=len(vocab), **{**small, **changes}), vocab)


def _rationale(count: int = 3) -> Sample:
    said = [" ".join(f"w{10 * part + i}" for i in range(count)) for part in range(6)]
    picture = Picture(
        "p", features=np.ones((4, 3), np.float32), boxes=np.tile(np.float32([0, 0, 1, 1]), (4, 1)), width=9, height=9
    )
    return Sample("q", tuple(said), (picture,), answers=(("2", 1.0),))


def test_question_right_answer_and_right_rationale_are_one_text_in_segments_that_close_themselves() -> None:
    system = _small(mlm_rate=0.0)
    rows = system.hide(_rationale(2), "mrfr", np.random.default_rng(0), _rationale).text
    assert rows is not None
    words = [system.vocab.cls, *(system.vocab.encode(x).ids.tolist() for x in ("w0 w1", "w10 w11", "w40 w41"))]
    assert rows.ids.tolist() == [
        words[0],
        *words[1],
        system.vocab.sep,
        *words[2],
        system.vocab.sep,
        *words[3],
        system.vocab.sep,
    ]
    assert rows.segment_ids.tolist() == [0, 0, 0, 0, 2, 2, 2, 3, 3, 3]
    with pytest.raises(BadInput, match="sample q: has 2 texts, a question of VCR has 5 or 6"):
        system.hide(replace(_rationale(), texts=("w0", "w1")), "mlm", np.random.default_rng(0), _rationale)


def test_each_segment_has_a_hidden_word_and_all_words_are_hidden_as_often() -> None:
    for number in range(50):  # nothing by chance: the first of each, as [MASK]
        system = _small(mlm_rate=0.0)
        found = system.hide(_rationale(), "mlm", np.random.default_rng(number), _rationale)
        assert found.targets["mlm"].rows.tolist() == [1, 5, 9]
        assert (found.text.ids[[1, 5, 9]] == system.vocab.mask).all()
    system, count, rate, runs = _small(), 10, 0.15, 600
    hidden = Counter(
        int(row)
        for i in range(runs)
        for row in system.hide(_rationale(count), "mlm", np.random.default_rng(i), _rationale).targets["mlm"].rows
    )
    for row in (row for start in (2, 13, 24) for row in range(start, start + count - 1)):
        assert abs(hidden[row] - runs * rate) < 5 * (runs * rate * (1 - rate)) ** 0.5
    first = rate + (1 - rate) ** count  # by chance, or because no other is
    for row in (1, 12, 23):
        assert abs(hidden[row] - runs * first) < 5 * (runs * first * (1 - first)) ** 0.5


def test_the_second_stage_has_the_authors_numbers() -> None:
    recipes = find("uniter").recipes
    for size, words, width in (("own_vcr", 2, 768), ("own_vcr_large", 10, 1024)):
        found = recipes[size]
        assert found.mix.share == {"mlm": words, "mrfr": 1, "mrc_kl": 1}
        assert (found.optim.lr, found.optim.max_norm, found.schedule.steps) == (3e-5, 0.0, 45_000)
        assert (found.config.max_pieces, found.config.hidden_size, found.config.type_vocab_size) == (220, width, 4)


def test_weights_of_the_second_stage_load_and_grow_no_more(tmp_path: Path) -> None:
    system = _small(hidden_size=768, num_attention_heads=12)
    theirs = system.keys.to_theirs(system.state_dict())
    torch.save(theirs, tmp_path / "small-vcr_2nd_stage.pt")
    back, config = read_ours(type(system), "uniter", tmp_path / "small-vcr_2nd_stage.pt", "own_vcr")
    assert (config.own, config.type_vocab_size, config.vocab_size) == ("vcr", 4, len(system.vocab))
    assert all(torch.equal(back[key], value) for key, value in system.state_dict().items())
    task = find("uniter").finetune["vcr"]
    tuned = begin(system, task).system
    assert torch.equal(tuned.words.segment.weight, system.words.segment.weight)
    first = _small(type_vocab_size=2, own="", max_pieces=60)
    more = begin(first, task).system
    assert torch.equal(more.words.segment.weight[2:], first.words.segment.weight[[0, 0]])
    assert len(more.words.word.weight) == len(first.words.word.weight) + 81


def test_the_second_stage_runs_by_the_command(tmp_path: Path) -> None:
    data, first, own = str(tmp_path / "twin"), tmp_path / "first", tmp_path / "own"
    main(["twin", "vcr", "--out", data, "--train", "8", "--val", "4", "--level", "0"])
    few = ["--schedule.steps", "6", "--schedule.warmup", "1", "--workers", "0", "--device", "cpu"]
    where = [
        "pretrain",
        "uniter",
        "--data",
        data,
        "--benchmark",
        "vcr-rationales",
        "--regions",
        f"{data}/regions",
        *few,
    ]
    main([*where, "--size", "tiny", "--out", str(first)])
    main(
        [
            *where,
            "--size",
            "own_vcr",
            "--weights",
            str(first / "model.safetensors"),
            "--vocab",
            str(first / "vocab.txt"),
            "--out",
            str(own),
        ]
    )
    lines = [json.loads(x) for x in (own / "metrics.jsonl").read_text().splitlines()]
    assert {x for line in lines for x in line.get("loss", {})} <= {"mlm", "mrfr", "mrc_kl"}
    config = read_recipe(find("uniter"), "uniter", own).config
    assert (config.own, config.type_vocab_size, config.max_pieces) == ("vcr", 4, 220)
    before, after = read_weights(first / "model.safetensors"), read_weights(own / "model.safetensors")
    assert len(after["words.segment.weight"]) == len(before["words.segment.weight"]) + 2
