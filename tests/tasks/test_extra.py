"""A second benchmark beside a task's own: which items take part, in which epochs, the same bits after a stop, and the command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from intarsia.cli import main
from intarsia.data.corpora import Early
from intarsia.data.loader import Plan
from intarsia.data.source import Leaving
from intarsia.errors import BadInput
from intarsia.extra_runs import Extra, Items, offered, open_extra
from intarsia.recipe import Batching
from intarsia.systems import find as find_system
from intarsia.tasks.benchmarks import Annotated, find
from intarsia.tuning_runs import open_items
from intarsia.turns_runs import Place
from intarsia.worlds.twins import write_twin

TASK = find_system("ernie_vil").finetune["vqa"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """VQA and Visual Genome's questions; of the latter's pictures the first is one that VQA trains on, the second one that it validates with."""
    vqa, genome = tmp_path_factory.mktemp("vqa"), tmp_path_factory.mktemp("genome")
    write_twin("vqa", vqa, 20, 6, level=0)
    write_twin("genome-qa", genome, 14, 2, level=0)
    asked = {x: json.loads((vqa / f"v2_OpenEnded_mscoco_{x}2014_questions.json").read_text()) for x in ("train", "val")}
    coco = [asked[x]["questions"][0]["image_id"] for x in ("train", "val")]
    known = [{"image_id": i, "coco_id": coco[i] if i < 2 else None} for i in range(14)]
    (genome / "image_data.json").write_text(json.dumps(known))
    return vqa, genome


def opened(folders: tuple[Path, Path], epochs: int | None = None) -> tuple[Annotated, Extra, tuple[str, ...]]:
    places = [Place(x, str(x / "regions")) for x in folders]
    benchmark = find("vqa")
    assert benchmark.labels is not None
    labels = benchmark.labels(folders[0])
    source = open_items(benchmark, folders[0], places[0].regions, "train", labels)
    return source, open_extra(TASK, benchmark, source, labels, places, epochs), labels


def test_what_takes_part_is_counted_one_by_one(folders: tuple[Path, Path]) -> None:
    source, extra, labels = opened(folders)
    kept, unanswered, shown = set[str](), 0, 0
    for image in json.loads((folders[1] / "question_answers.json").read_text()):
        for x in image["qas"]:
            answer = x["answer"].lower().rstrip(".")
            if answer not in labels:
                unanswered += 1
            elif image["id"] == 1:  # COCO's, and validated with
                shown += 1
            else:
                kept.add(str(x["qa_id"]))
    assert unanswered
    assert shown
    assert {item.key for item, _ in extra.items.kept} == kept
    assert (extra.unanswered, extra.tested, extra.epochs) == (unanswered, shown, 2)
    assert f"left out: {unanswered} whose answer is not in the list, {shown} on pictures" in extra.told
    whole = Items(source, extra.items, extra.epochs)
    assert isinstance(whole, Leaving)
    assert not isinstance(source, Leaving)
    assert [whole[i].key for i in range(len(source))] == [x.key for x, _ in source.kept]
    assert all(whole[i].key.startswith("genome-qa/") for i in range(len(source), len(whole)))
    assert {answer for i in range(len(source), len(whole)) for answer, _ in whole[i].answers} <= set(labels)


def test_without_coco_numbers_the_sets_count_as_apart(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "question_answers.json").write_text((folders[1] / "question_answers.json").read_text())
    places = Place(folders[0], str(folders[0] / "regions")), Place(tmp_path, str(folders[1] / "regions"))
    source, _, labels = opened(folders)
    found = open_extra(TASK, find("vqa"), source, labels, places)
    assert found.tested == 0
    assert "which pictures are COCO's is not known" in found.told
    with pytest.raises(BadInput, match="nothing of genome-qa is left"):
        open_extra(TASK, find("vqa"), source, ("no such answer",), places)
    with pytest.raises(BadInput, match="trains on nothing beside"):
        open_extra(find_system("lxmert").finetune["vqa"], find("vqa"), source, labels, places)


@pytest.mark.parametrize(("epochs", "block"), [(0, 0), (1, 0), (2, 0), (2, 8)])
def test_epochs_hold_what_they_should(folders: tuple[Path, Path], epochs: int, block: int) -> None:
    source, extra, _ = opened(folders)
    whole = Early(source, extra.items, "genome-qa", epochs)
    rows = np.full(len(whole), 20, np.int32)
    rows[3] = 0  # too long
    batching = Batching(rows=300, window=16, block=block)
    plan = Plan(rows, batching, 7, until=whole.epochs)
    own = [i for i in range(len(source)) if i != 3]
    beside = list(range(len(source), len(whole)))
    for epoch in range(4):
        seen = Counter(int(i) for batch in plan.epoch(epoch) for i in batch)
        assert seen == Counter(own + (beside if not epochs or epoch < epochs else []))
    alone = Plan(rows[: len(source)], batching, 7)
    for epoch in range(4):
        if epochs and epoch >= epochs:  # as though the second had never been there
            assert all(np.array_equal(x, y) for x, y in zip(plan.epoch(epoch), alone.epoch(epoch), strict=True))
    again = Plan(rows, batching, 7, tuple(plan.starts[:3]), until=whole.epochs)
    for number in range(plan.starts[2], plan.starts[4]):
        (epoch, samples), (other, same) = plan.batch(number), again.batch(number)
        assert epoch == other
        assert np.array_equal(samples, same)
    with pytest.raises(BadInput, match="cannot take part in -1 epochs"):
        Early(source, extra.items, "genome-qa", -1)


def test_the_command_goes_on_to_the_same_bits(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vqa, genome = map(str, folders)
    tune = ["finetune", "ernie_vil", "vqa", "--data", vqa, "--regions", f"{vqa}/regions", "--size", "tiny"]
    tune += ["--steps", "6", "--rows", "1200", "--samples", "40", "--workers", "0", "--device", "cpu"]
    both = ["--extra", genome, "--extra-regions", f"{genome}/regions", "--extra-epochs", "1"]
    main([*tune, *both, "--out", str(tmp_path / "whole")])
    assert "in the first 1 epochs: genome-qa train:" in capsys.readouterr().out.replace("\n", " ")
    kept = json.loads((tmp_path / "whole/finetune.json").read_text())["extra"]
    assert kept == f"genome-qa {genome} {genome}/regions 1"
    stopped(monkeypatch, 4, [*tune, *both, "--out", str(tmp_path / "twice")])
    assert not (tmp_path / "twice/model.safetensors").exists()
    main([*tune, *both, "--out", str(tmp_path / "twice")])
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "twice"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    capsys.readouterr()
    main([*tune[:-8], "--steps", "0", "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "plain")])
    assert "the paper also trains on Visual Genome questions, in the first 2 epochs" in capsys.readouterr().out
    assert offered(find_system("uniter").finetune["vqa"]).endswith("in all epochs; without --extra they are left out")
    for wrong, why in (
        ([*both[:-1], "2", "--out", str(tmp_path / "whole")], "of another run"),
        (["--extra-epochs", "2", "--out", str(tmp_path / "new")], "name the second benchmark's folder with --extra"),
        (["--extra", vqa, "--out", str(tmp_path / "new")], "holds no question_answers.json"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*tune, *wrong])
        assert caught.value.code == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def stopped(monkeypatch: pytest.MonkeyPatch, step: int, args: list[str]) -> None:
    """Runs a command that is told to stop inside a step."""
    import os
    import signal

    from intarsia.train import loop

    plain = loop.Run._step

    def kill(self: loop.Run, number: int, *more: object) -> None:
        if number == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, number, *more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_step", kill)
        main(args)
