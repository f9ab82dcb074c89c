"""ERNIE-ViL's letters of broken pairs: what comes in for each, how often, the two halves of the loss, and the commands."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.batch import Batch, Example, Sample
from intarsia.cli import main
from intarsia.data.corpora import Pool
from intarsia.errors import BadInput
from intarsia.systems import find as find_system
from intarsia.tasks.benchmarks import Annotated, find
from intarsia.tasks.benchmarks.rivals import Rivals, read_pool
from intarsia.tasks.retrieval import RetrievalCircle, circle_loss, read_schema
from intarsia.tuned import Tuned, with_broken
from intarsia.tuning_runs import begin, negatives_of, open_items
from intarsia.worlds.twins import write_twin

PICTURES = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Annotated:
    data = tmp_path_factory.mktemp("flickr")
    write_twin("flickr30k", data, PICTURES, 4, level=0)
    return open_items(find("flickr30k"), data, str(data / "regions"), "train")


@pytest.fixture(scope="module")
def rivals(source: Annotated, tmp_path_factory: pytest.TempPathFactory) -> Rivals:
    """Each picture is like the next three."""
    names = list(dict.fromkeys(item.pictures[0] for item, _ in source.kept))
    pool = {name: [names[(i + k) % PICTURES] for k in (1, 2, 3)] for i, name in enumerate(names)}
    path = tmp_path_factory.mktemp("pool") / "pool.json"
    path.write_text(json.dumps(pool))
    return read_pool(source, path)


class Said:
    """A lay-out that says what it was given."""

    def __init__(self) -> None:
        self.given: list[Sample] = []
        self.vocab: Any = None

    def __call__(self, sample: Sample, form: int = 0, name: str = "") -> Example:
        self.given.append(sample)
        return Example(sample.key)


def broken(source: Annotated, rivals: Rivals, number: int, schema: str, seed: int) -> list[Sample]:
    """The broken pairs of a sample."""
    sample, rng, lay = source[number], np.random.default_rng(seed), Said()
    pool = Pool(source, np.arange(len(source)))
    far: Callable[[], Sample] = lambda: pool.draw(rng, sample, number)  # noqa: E731
    task = RetrievalCircle().broken_as(read_schema(schema))
    examples = task.documents(lay, sample, rng, rivals.draws(sample, rng, far))
    assert [int(x.targets["retrieval"]) for x in examples] == [1] + [0] * (len(examples) - 1)  # type: ignore[call-overload]
    true = lay.given.pop()  # laid out last, stands first
    assert (true.texts, true.pictures[0].name) == (sample.texts, sample.pictures[0].name)
    return lay.given


def test_each_letter_brings_in_what_it_says(source: Annotated, rivals: Rivals) -> None:
    names = list(dict.fromkeys(item.pictures[0] for item, _ in source.kept))
    said_of: dict[str, set[str]] = {}
    for item, _ in source.kept:
        said_of.setdefault(item.pictures[0], set()).add(item.texts[0])
    for number in range(0, len(source), 7):
        sample = source[number]
        mine, name = sample.texts[0], sample.pictures[0].name
        place = names.index(name)
        alike = {names[(place + k) % PICTURES] for k in (1, 2, 3)}
        found = broken(source, rivals, number, "ei*5,ec*5,hi*5,hc*5", number)
        for x in (*found[:5], *found[10:15]):  # the caption stays
            assert x.texts == (mine,)
            assert x.pictures[0].name != name
        for x in (*found[5:10], *found[15:]):  # the picture stays
            assert x.pictures[0].name == name
        assert {x.pictures[0].name for x in found[10:15]} <= alike
        assert all(x.texts[0] in set().union(*(said_of[y] for y in alike)) for x in found[15:])
        assert all(any(x.texts[0] in said_of[y] for y in names if y != name) for x in found[5:10])


def test_who_comes_in_is_even(source: Annotated, rivals: Rivals) -> None:
    """Counts lie within four deviations of a binomial."""
    names = list(dict.fromkeys(item.pictures[0] for item, _ in source.kept))
    count, times = 12, 100
    near, far = Counter[str](), Counter[str]()
    for seed in range(times):
        found = broken(source, rivals, 0, f"hi*{count},ei*{count}", seed)
        near.update(x.pictures[0].name for x in found[:count])
        far.update(x.pictures[0].name for x in found[count:])
    for seen, share in ((near, {x: 1 / 3 for x in names[1:4]}), (far, shares(source, names[0]))):
        assert set(seen) == set(share)
        for name, p in share.items():
            n = count * times
            assert abs(seen[name] - n * p) < 4 * np.sqrt(n * p * (1 - p)), (name, seen[name], n * p)


def shares(source: Annotated, but: str) -> dict[str, float]:
    """Of a caption drawn evenly from those of other pictures: how often it is of each."""
    counts = Counter(item.pictures[0] for item, _ in source.kept)
    del counts[but]
    return {name: x / counts.total() for name, x in counts.items()}


@pytest.mark.parametrize(("schema", "halves"), [("ei*20", (10, 10)), ("hi,hc*2,ec*2", (2, 3)), ("ei,hc", (1, 1))])
def test_the_halves_of_the_loss_are_counted_one_by_one(schema: str, halves: tuple[int, int]) -> None:
    task = RetrievalCircle().broken_as(read_schema(schema))
    count, rng = sum(halves), torch.Generator().manual_seed(1)
    scores = torch.randn(3, 1 + count, generator=rng)
    likely = scores.sigmoid()
    first, last = likely[:, 1 : 1 + halves[0]], likely[:, 1 + halves[0] :]
    wanted = sum(circle_loss(likely[:, :1], x, task.margin, task.scale) for x in (first, last)) / 2
    found = task.loss(scores.flatten(), Batch((), torch.arange(3).repeat_interleave(1 + count)))
    torch.testing.assert_close(found, wanted.float())  # type: ignore[union-attr]


def test_letters_are_read_and_refused(tmp_path: Path) -> None:
    assert negatives_of("ei*2, hc*3,hi,ec") == "ppTTTPt"
    conf = tmp_path / "task_flickr.json"
    conf.write_text(json.dumps([{"prob": 1.0, "negative_schema": ["ei", "ei", "hc"]}]))  # as published
    assert negatives_of(str(conf)) == "ppT"
    conf.write_text(json.dumps([{"negative_schema": "ei"}]))
    with pytest.raises(BadInput, match="is no list of letters"):
        negatives_of(str(conf))
    for spec, why in (("xi", "'xi' is none of ei, ec, hi, hc"), ("ei*0", "'ei\\*0'"), ("", "''"), ("ei*two", "two")):
        with pytest.raises(BadInput, match=why):
            negatives_of(spec)
    with pytest.raises(BadInput, match="the two halves of the loss"):
        RetrievalCircle().broken_as("p")
    with pytest.raises(BadInput, match="not a choice in the paper's task"):
        with_broken(find_system("uniter").finetune["retrieval"], "pp")


def test_workers_break_pairs_as_the_main_process_does(source: Annotated) -> None:
    found = with_broken(find_system("ernie_vil").finetune["retrieval"], "pTt")
    tuned, _ = begin("ernie_vil", "retrieval", "base", None, None, source, (), tiny=True, finetune=found)
    assert isinstance(tuned, Tuned)
    again = pickle.loads(pickle.dumps(tuned))
    assert again.task.broken_by == ("pTt",)
    pool = Pool(source, np.arange(len(source)))
    documents = []
    for x in (tuned, again):
        rng = np.random.default_rng(3)
        documents.append(x.documents(source[4], "retrieval", rng, lambda rng=rng: pool.draw(rng, source[4], 4)))  # type: ignore[misc]
    assert len(documents[0]) == 4
    for one, other in zip(*documents, strict=True):
        assert one.text is not None
        assert other.text is not None
        assert np.array_equal(one.text.ids, other.text.ids)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "twin")
    main(["twin", "flickr30k", "--out", data, "--train", "8", "--val", "4", "--level", "0"])
    tune = ["finetune", "ernie_vil", "retrieval", "--data", data, "--regions", f"{data}/regions", "--size", "tiny"]
    tune += ["--steps", "2", "--rows", "400", "--samples", "2", "--workers", "0", "--device", "cpu"]
    schema = ["--negatives", "ei*2,hc*2", "--hard-negatives", "nearest"]
    main([*tune, *schema, "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/finetune.json").read_text())["negatives"] == "ppTT"
    main([*tune, *schema, "--out", str(tmp_path / "run")])  # finished: nothing is done again
    capsys.readouterr()
    for wrong, why in (
        (["--negatives", "ei*2,hi*2", "--hard-negatives", "nearest", "--out", str(tmp_path / "run")], "of another run"),
        (["--negatives", "ei*2,hc*2", "--out", str(tmp_path / "new")], "say which with --hard-negatives"),
        (["--negatives", "ei*4", "--hard-negatives", "nearest", "--out", str(tmp_path / "new")], "takes none"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*tune, *wrong])
        assert caught.value.code == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
