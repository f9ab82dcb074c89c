"""Many tasks in turn: who pauses by hand-made curves, what each round trains, the clean split, resume to the same bits, a run that each task is scored in."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import two_processes
from safetensors.torch import load_file

from intarsia import turns_runs
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.recipe import Turns
from intarsia.systems.vilbert import ViLBERT
from intarsia.tasks.among import TWELVE
from intarsia.tasks.benchmarks import find
from intarsia.train.turns import RunInTurns, Turn
from intarsia.turns_runs import Place, Together, begin_tasks, finetune_together, open_tasks, picture_id

NAMES = ("gqa", "nlvr2", "re", "retrieval")
FOLDERS = ("gqa", "nlvr2", "refcoco", "flickr30k")


# ------------------------------------------------------------------------------------------------------ stop and go


def paused(curve: list[float], **rules: Any) -> str:
    """A letter an evaluation: P = the task is paused after it."""
    turn, said = Turn(), ""
    for score in curve:
        turn = turn.judged(score, Turns(**rules))
        said += "P" if turn.paused else "."
    return said


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "......"),
        ([0.5, 0.5, 0.5, 0.5], "..PP"),  # one evaluation without gain is borne, a second is not
        ([0.5, 0.5004, 0.5004, 0.6], "..PP"),  # less than a thousandth is no gain; a gain alone does not wake it
        ([0.5, 0.5, 0.5, 0.498, 0.497, 0.5], "..PP.."),  # 0.4 % below the best sleeps on, 0.6 % wakes it
        ([0.5, 0.4, 0.4, 0.4], "...."),  # one that has just fallen goes on
        # awake at the fourth, which is 10 % down; the next is in the cooldown, then two without gain pause it
        ([0.5, 0.5, 0.5, 0.45, 0.499, 0.499, 0.499], "..P...P"),
        ([0.0, 0.0, 0.0], "..."),  # a share of nothing is nothing: it has fallen as low as it can
    ],
)
def test_a_task_pauses_and_goes_on(curve: list[float], said: str) -> None:
    assert paused(curve) == said


def test_the_rules_are_the_users() -> None:
    assert paused([0.5, 0.5, 0.5, 0.5], patience=0, cooldown=0) == ".PPP"
    assert paused([0.5, 0.6, 0.6, 0.6], better=0.5) == "..PP"
    assert paused([0.5, 0.5, 0.5, 0.3], fallen=0.5) == "..PP"


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("twins")
    for name in FOLDERS:
        main(["twin", name, "--out", str(out / name), "--train", "8", "--val", "4", "--level", "0"])
    return out


def begun(twins: Path, accumulate: int = 1, **rules: Any) -> tuple[Any, ...]:
    parts = open_tasks("vilbert", NAMES, [Place(twins / x, str(twins / x / "regions")) for x in FOLDERS])
    together, recipe, factors = begin_tasks("vilbert", parts, "tiny", None, None, Turns(**rules))
    assert recipe.turns is not None
    small = {x: replace(y, rows=200, samples=4) for x, y in recipe.turns.tasks.items()}
    schedule, batching = replace(recipe.schedule, steps=6, warmup=1), replace(recipe.batching, accumulate=accumulate)
    recipe = replace(recipe, schedule=schedule, batching=batching, turns=replace(recipe.turns, tasks=small))
    return together, recipe, factors, parts


def trained(twins: Path, out: Path, together: Together | None = None, workers: int = 0, accumulate: int = 1) -> Any:
    fresh, recipe, factors, parts = begun(twins, accumulate, every=1, gap=4)
    pace = turns_runs.Pace(log_every=2, save_every=2, tensorboard=False)
    options: dict[str, Any] = {"workers": workers, "device": "cpu", "pace": pace}
    return finetune_together("vilbert", "tiny", "", together or fresh, recipe, factors, parts, {}, out, **options)


CURVES = {
    "gqa": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    "nlvr2": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5],  # pauses after round 3
    "re": [0.5, 0.5, 0.5, 0.4, 0.5, 0.5],  # the same, and goes on after round 4
    "retrieval": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
}
"""Held-out scores by hand, a curve a task, by the rounds done."""
VALIDATE = RunInTurns._validate


def by_hand(self: RunInTurns, done: int) -> None:
    """Scores by the curves, in the first process alone."""
    self.judges = {
        name: lambda name=name: CURVES[name][done - 1] if self.world.first else 1 / 0 for name in self.judges
    }
    VALIDATE(self, done)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunInTurns, "_validate", by_hand)


def seen_by(together: Together) -> list[str]:
    """The tasks of the batches that a run trains on, as they come."""
    seen: list[str] = []
    together.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].keys[0].partition("/")[0]) if module.training else None
    )
    return seen


ROUNDS = [
    *NAMES,  # round 0
    *NAMES,
    *NAMES,
    "gqa",
    "retrieval",  # round 3: two pause, it is no fourth one
    *NAMES,  # round 4: one goes on, the other has its turn in every fourth
    "gqa",
    "re",
    "retrieval",
]


@pytest.mark.parametrize("workers", [0, 1])
def test_tasks_take_turns_stop_and_go_on(twins: Path, tmp_path: Path, judged: None, workers: int) -> None:
    together = begun(twins, every=1)[0]
    seen = seen_by(together)
    assert trained(twins, tmp_path, together, workers).finished
    assert seen == ROUNDS
    assert together.passes == len(ROUNDS) - 1  # before the last
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["paused"] for x in lines if "nlvr2" in x.get("valid", {})] == [0, 0, 1, 1, 1, 1]
    assert [x["paused"] for x in lines if "re" in x.get("valid", {})] == [0, 0, 1, 0, 0, 0]
    assert all(set(x["loss"]) == set(NAMES) for x in lines if "loss" in x)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(twins: Path, tmp_path: Path, judged: None) -> None:
    """It is stopped in the second round, and in the fourth, when two tasks are paused."""
    trained(twins, tmp_path / "whole")
    stops = {7: "step-00000002", 14: "step-00000004"}
    for at, saved in stops.items():
        out, together = tmp_path / f"cut-{at}", begun(twins)[0]
        calls: list[int] = []

        def stop(module: Any, inputs: Any, calls: list[int] = calls, at: int = at) -> None:
            calls.append(1)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)

        together.register_forward_pre_hook(stop)
        first = trained(twins, out, together)
        assert (first.finished, first.stopped_by) == (False, "SIGTERM")
        assert (out / "checkpoints/latest").read_text() == saved
        assert trained(twins, out, workers=at % 2).finished
        for name in ("model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
            one, other = (load_file(x / name) for x in (tmp_path / "whole", out))
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        states = [
            json.loads((x / "checkpoints/step-00000006/state.json").read_text()) for x in (tmp_path / "whole", out)
        ]
        assert states[0]["turns"] == states[1]["turns"]
        assert {x: states[0]["turns"][x]["taken"] for x in NAMES} == {x: ROUNDS.count(x) for x in NAMES}


def _rank(rank: int, out: Path) -> None:
    RunInTurns._validate = by_hand  # type: ignore[method-assign]
    twins = Path((out / "twins.txt").read_text())
    together = begun(twins)[0]
    seen = seen_by(together)
    trained(twins, out / "two", together)
    (out / f"seen-{rank}.json").write_text(json.dumps(seen))


MOOT = ("vil_logit.bias", "qkv.bias")
"""A softmax does not hear these, or a third of them: their gradient is rounding alone, of which Adam makes whole steps."""


def test_two_processes_are_one_with_two_micro_batches(twins: Path, tmp_path: Path, judged: None) -> None:
    """The same tasks take turns in both, who pauses is what the first one scores, and both end with what one process ends with."""
    (tmp_path / "twins.txt").write_text(str(twins))
    two_processes(_rank, tmp_path)
    together = begun(twins)[0]
    seen = seen_by(together)
    trained(twins, tmp_path / "one", together, accumulate=2)
    assert seen == [name for name in ROUNDS for _ in range(2)]
    assert [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(2)] == [ROUNDS, ROUNDS]
    for name in ("model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        one, two = (load_file(tmp_path / x / name) for x in ("one", "two"))
        assert one.keys() == two.keys()
        for key in one.keys() - {x for x in one if x.endswith(MOOT)}:
            off = float((two[key].double() - one[key].double()).norm())  # sums of other orders; a step's share is 1e-3
            assert off <= 1e-4 * float(one[key].double().norm()) + 1e-6, key
    lines = [[json.loads(x) for x in (tmp_path / x / "metrics.jsonl").read_text().splitlines()] for x in ("one", "two")]
    for a, b in zip(*lines, strict=True):
        assert a.get("paused") == b.get("paused")
        assert b.get("loss", {}) == pytest.approx(a.get("loss", {}), rel=1e-5)
    first = load_file(tmp_path / "one/checkpoints/step-00000004/model.safetensors")
    last = load_file(tmp_path / "one/model.safetensors")
    assert max(float((last[key] - first[key]).abs().max()) for key in last) > 1e-5


def test_rates_weights_and_heads_are_the_papers(twins: Path) -> None:
    together, recipe, factors, _ = begun(twins)
    assert recipe.optim.lr == 2e-5
    assert recipe.mix.scale == {"gqa": 2.0, "nlvr2": 1.0, "re": 1.0, "retrieval": 1.0}  # 4e-5 over the smallest
    heads = ("vil_prediction_gqa", "vil_binary_prediction", "vil_logit")
    assert factors == {f"head.{x}.": pytest.approx(5.0) for x in heads}
    paper = {x: ViLBERT.finetune[x].tunings["base"] for x in NAMES}
    assert begin_rounds(recipe) == {x: paper[x].samples for x in NAMES} | {"changed": 4}
    assert together.config.task_specific_tokens
    names = [name for name, _ in together.named_parameters()]
    assert len(names) == len(set(names)) and names == [name for name, _ in together.parts["re"].named_parameters()]
    for name, part in together.parts.items():
        assert part.system.config.max_pieces == ViLBERT.finetune[name].config["max_pieces"]
        assert part.head is together.head and part.system.encoder is together.system.encoder


def begin_rounds(recipe: Any) -> dict[str, int]:
    """Samples of a batch of each task, as the paper has them; and as this test has."""
    (changed,) = {x.samples for x in recipe.turns.tasks.values()}
    return {x: ViLBERT.finetune[x].tunings["base"].samples for x in recipe.turns.tasks} | {"changed": changed}


def test_a_head_without_a_turn_moves_by_momentum_and_is_decayed(twins: Path) -> None:
    """Every parameter is stepped in every update, so the count of updates is one for all: no correction differs."""
    from intarsia.train.optim import Optimizers

    together, recipe, factors, _ = begun(twins)
    optimizer = Optimizers(together, recipe, factors)
    for update in range(3):
        for parameter in together.parts["re"].system.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step(1, torch.zeros(()), None, update)
    counts = {int(x["step"]) for x in optimizer.state.values()}
    assert counts == {3}
    assert len(optimizer.state) == len(optimizer.parameters)


def test_a_picture_is_the_same_in_all_benchmarks() -> None:
    coco = {"2407890": 9}
    same = [("vqa", "COCO_train2014_000000000009.jpg"), ("refcoco", "COCO_train2014_000000000009_3.jpg")]
    same += [("guesswhat", "9"), ("genome-qa", "2407890.jpg"), ("visual7w", "v7w_2407890.jpg"), ("gqa", "2407890")]
    assert {picture_id(*x, coco) for x in same} == {"coco 9"}
    assert picture_id("gqa", "9", coco) == "genome 9"  # another picture than COCO's ninth
    assert picture_id("snli-ve", "36979.jpg", coco) == picture_id("flickr30k", "36979", coco)


def test_no_task_trains_on_pictures_that_another_is_tested_with(twins: Path, tmp_path: Path) -> None:
    names = ("re", "guesswhat")
    for name in ("refcoco", "guesswhat"):
        main(["twin", name, "--out", str(tmp_path / name), "--train", "8", "--val", "4", "--level", "0"])
    places = [Place(tmp_path / x, str(tmp_path / x / "regions")) for x in ("refcoco", "guesswhat")]
    before = open_tasks("vilbert", names, places)
    assert [x.cleaned for x in before] == [0, 0]
    # two pictures that GuessWhat trains on become pictures that RefCOCO is tested with
    path = next((tmp_path / "refcoco").rglob("refs(unc).p"))
    import pickle

    refs = pickle.loads(path.read_bytes())
    chosen = sorted({x["image_id"] for x in refs if x["split"] == "train"})[:2]
    for x in refs:
        x["split"] = "testA" if x["image_id"] in chosen else x["split"]
    path.write_bytes(pickle.dumps(refs))
    after = open_tasks("vilbert", names, places)
    assert after[1].cleaned == sum(
        int(x.pictures[0][-16:-4]) in chosen for x in find("guesswhat").read(tmp_path / "guesswhat", "train").items
    )
    assert after[1].cleaned > 0
    assert not {picture_id("guesswhat", y, {}) for x, _ in after[1].train.kept for y in x.pictures} & {
        f"coco {x}" for x in chosen
    }
    assert open_tasks("vilbert", names, places, "none")[1].cleaned == 0


def test_from_the_command_line_to_the_score_of_each_task(
    twins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tune = ["finetune", "vilbert", "gqa,nlvr2,retrieval", "--data", str(twins), "--out", str(run), "--size", "tiny"]
    tune += ["--steps", "2", "--rows", "200", "--samples", "4", "--valid-items", "3", "--workers", "0"]
    main([*tune, "--device", "cpu", "--valid-every", "1"])
    assert "score it on gqa, nlvr2, flickr30k" in capsys.readouterr().out
    for name, split in (("gqa", "val"), ("nlvr2", "dev"), ("flickr30k", "val")):
        main(["score", str(run), "--benchmark", name])
        assert json.loads((run / f"score-{name}-{split}.json").read_text())["benchmark"] == name
    # a task of it goes on alone, with the heads of all
    alone = ["finetune", "vilbert", "nlvr2", "--data", str(twins / "nlvr2"), "--regions", str(twins / "nlvr2/regions")]
    alone += ["--out", str(tmp_path / "alone"), "--weights", str(run), "--steps", "1", "--rows", "400"]
    main([*alone, "--samples", "2", "--workers", "0", "--device", "cpu"])
    main(["score", str(tmp_path / "alone")])
    capsys.readouterr()
    for wrong, told in (
        (["score", str(run)], "tasks in turn; say which with --benchmark (gqa, nlvr2, flickr30k)"),
        (["score", str(run), "--benchmark", "vqa"], "say which with --benchmark"),
        ([*tune[:2], "gqa,nlvr2,gqa", *tune[3:]], "gqa comes twice"),
        ([*tune[:2], "gqa,nope", *tune[3:]], "its paper has no task 'nope'"),
        ([*tune[:2], "gqa,beta_vqa", *tune[3:]], "holds no v2_mscoco_train2014_annotations.json"),
        ([*tune, "--regions", "a", "b"], "--regions: 2 folders for 3 tasks"),
        ([*tune, "--gap", "0"], "--gap 0: at least 1"),
        ([*tune, "--max-norm", "-1"], "--max-norm -1.0: at least 0"),
        ([*tune, "--answers", "x=y"], "--answers x: say TASK=FILE"),
        ([*tune, "--seed", "7"], "is now 7"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
        assert told in capsys.readouterr().err.replace("\n", " ")


def test_tasks_of_other_heads_are_refused(twins: Path) -> None:
    with pytest.raises(BadInput, match="comes twice"):
        turns_runs.names_of("vilbert", "gqa,gqa")
    assert turns_runs.names_of("vilbert", "12in1") == TWELVE
    parts = open_tasks("vilbert", ("re", "beta_retrieval"), [
        Place(twins / x, str(twins / x / "regions")) for x in ("refcoco", "flickr30k")
    ])  # fmt: skip
    with pytest.raises(BadInput, match="re and beta_retrieval: their heads are not the same set"):
        begin_tasks("vilbert", parts, "tiny", None, None, Turns())


def test_held_out_pairs_are_scored_as_a_slow_loop_does(twins: Path) -> None:
    from intarsia.pack import pack
    from intarsia.tuned_together import match_accuracy

    together, *_, parts = begun(twins)
    part, source = together.parts["retrieval"], parts[-1].valid
    right = []
    for i in range(len(source)):
        rng, sample = np.random.default_rng([0x12, i]), source[i]
        others = [j for j in range(len(source)) if source[j].pictures[0].name != sample.pictures[0].name]

        def draw(rng: Any = rng, own: str = sample.pictures[0].name) -> Any:
            while source[j := int(rng.integers(len(source)))].pictures[0].name == own:
                pass
            return source[j]

        assert others
        part.eval()
        with torch.inference_mode():
            scores = torch.cat(part.predict(pack(part.documents(sample, "retrieval", rng, draw))))
        assert len(scores) == 4
        right.append(bool((scores[0] > scores[1:]).all()))
    assert match_accuracy(part, source) == pytest.approx(np.mean(right))
