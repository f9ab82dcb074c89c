"""Published fine-tuned weights: every system's task from a file in its authors' names to a run that is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.system import FineTuned, System, begin, fit_config
from intarsia.systems import SYSTEMS, find
from intarsia.text import SPECIALS, Vocab
from intarsia.tuned import takes_labels, with_labels
from intarsia.tuned_files import read_tuned
from intarsia.weights.files import read_weights, write_weights

WORDS = [f"w{i}" for i in range(60)]
ANSWERS = ("yes", "no", "2")
PAIRS = [
    (name, task)
    for name in SYSTEMS
    for task, finetune in find(name).finetune.items()
    if finetune.keys.moves and find(name).card.weights and "clips" not in find(name).needs
]


def made(name: str, task: str) -> tuple[System, FineTuned, Any]:
    """A small system, and the same with a task's head of random numbers."""
    cls = find(name)
    vocab = Vocab([*SPECIALS, *cls.specials, *WORDS])
    sizes = (2048, 1601, 401) if name in ("oscar", "vlp") else (8, 5, 3)  # what theirs do not tell is as published
    config = fit_config(cls.recipes["tiny"].config, len(vocab), *sizes)
    finetune = cls.finetune[task]
    if takes_labels(finetune):
        finetune = with_labels(finetune, ANSWERS)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        system = cls(config, vocab)
        tuned = begin(system, finetune)
        for value in tuned.parameters():
            value.data += 0.1 * torch.randn_like(value)
    return system, tuned, finetune


def theirs(tuned: FineTuned) -> dict[str, torch.Tensor]:
    """In the authors' names, as in pre-training."""
    return tuned.keys.to_theirs(tuned.state_dict())


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_file_with_a_head_gives_back_every_tensor(name: str, task: str, tmp_path: Path) -> None:
    system, tuned, finetune = made(name, task)
    path = tmp_path / "tuned.pt"
    write_weights(path, theirs(tuned))
    state = read_weights(path)
    found = read_tuned(find(name), task, finetune, "tiny", state, system.vocab, str(path))
    heads = {key for key in state if finetune.keys.knows({key: state[key]})}
    if find(name).keys.knows({key: state[key] for key in heads}):
        assert found is None  # the head of a task is that of pre-training: nothing tells them apart
        return
    assert found is not None
    mine, wanted = found.state_dict(), tuned.state_dict()
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("name", "task", "called"),
    [
        ("lxmert", "vqa", lambda key: key if key.startswith("logit_fc.") else f"lxrt_encoder.model.{key}"),
        ("vl_bert", "vcr", lambda key: key.replace("vlbert.", "vlbert._module.", 1)),
        ("visualbert", "vqa", lambda key: f"bert.{key}"),
        ("visualbert", "ground", lambda key: f"bert.{key}"),
        ("visualbert", "vqa_mmf", lambda key: f"model.{key}"),
        ("visualbert", "nlvr2_mmf", lambda key: f"model.{key}"),
        ("lxmert", "nlvr2", lambda key: f"module.{key}"),
    ],
)
def test_what_wrappers_put_in_front_is_known(name: str, task: str, called: Any, tmp_path: Path) -> None:
    system, tuned, finetune = made(name, task)
    path = tmp_path / "tuned.pt"
    write_weights(path, {called(key): value for key, value in theirs(tuned).items()})
    found = read_tuned(find(name), task, finetune, "tiny", read_weights(path), system.vocab, str(path))
    assert found is not None
    assert all(torch.equal(value, tuned.state_dict()[key]) for key, value in found.state_dict().items())


def test_hugging_faces_names_of_visualbert(tmp_path: Path) -> None:
    system, tuned, finetune = made("visualbert", "vqa")
    keys = find("visualbert").layouts["hf"].under("system.") + finetune.keys
    state = {k.replace("classifier.", "cls."): v for k, v in keys.to_theirs(tuned.state_dict()).items()}
    assert {"cls.weight", "visual_bert.embeddings.visual_projection.weight"} <= state.keys()
    found = read_tuned(find("visualbert"), "vqa", finetune, "tiny", state, system.vocab, "theirs")
    assert found is not None
    assert all(torch.equal(value, tuned.state_dict()[key]) for key, value in found.state_dict().items())


@pytest.mark.parametrize(("task", "times"), [("vqa_mmf", 1), ("nlvr2_mmf", 2)])
def test_mmfs_names_of_a_head(task: str, times: int) -> None:
    _, tuned, _ = made("visualbert", task)
    head = {key: tuple(x.shape) for key, x in theirs(tuned).items() if key.startswith("classifier.")}
    answers, width = head["classifier.1.weight"]
    assert width == times * tuned.system.config.hidden_size
    named = [f"classifier.0.{x}" for x in ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")]
    assert sorted(head) == sorted([*named, "classifier.1.weight", "classifier.1.bias"])
    assert head["classifier.0.dense.weight"] == (width, width)
    assert head["classifier.1.bias"] == (answers,)


def test_heads_that_do_not_fit_are_named() -> None:
    system, tuned, finetune = made("lxmert", "vqa")
    with pytest.raises(BadInput, match=r"theirs: head\.out\.weight has shape \(3, \d+\), the config asks for \(2, "):
        read_tuned(
            find("lxmert"), "vqa", with_labels(finetune, ANSWERS[:2]), "tiny", theirs(tuned), system.vocab, "theirs"
        )
    with pytest.raises(BadInput, match=r"theirs: the vocabulary has 5 pieces, the weights 65"):
        read_tuned(find("lxmert"), "vqa", finetune, "tiny", theirs(tuned), Vocab(SPECIALS), "theirs")
    plain = find("lxmert").keys.to_theirs(system.state_dict())
    assert read_tuned(find("lxmert"), "vqa", finetune, "tiny", plain, system.vocab, "theirs") is None


def test_a_published_file_is_scored_as_the_run_it_came_from(tmp_path: Path) -> None:
    data, run, again = str(tmp_path / "twin"), tmp_path / "run", tmp_path / "again"
    main(["twin", "nlvr2", "--out", data, "--train", "8", "--val", "8", "--level", "0"])
    tune = ["finetune", "visualbert", "nlvr2", "--data", data, "--regions", f"{data}/regions", "--size", "tiny"]
    tune += ["--rows", "600", "--samples", "4", "--workers", "0", "--device", "cpu"]
    main([*tune, "--steps", "2", "--out", str(run)])
    cls = find("visualbert")
    names = cls.keys.under("system.") + cls.finetune["nlvr2"].keys
    file = tmp_path / "theirs.th"
    state = names.to_theirs(read_weights(run / "model.safetensors"))
    write_weights(file, {f"bert.{key}": value for key, value in state.items()})
    given = ["--weights", str(file), "--vocab", str(run / "vocab.txt"), "--steps", "0"]
    main([*tune, *given, "--out", str(again)])
    for folder in (run, again):
        main(["score", str(folder)])
    told = [json.loads((x / "score-dev.json").read_text()) for x in (run, again)]
    assert told[0]["numbers"] == told[1]["numbers"]
    mine, theirs = (read_weights(x / "model.safetensors") for x in (run, again))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
