"""Runs opened again, measured by a benchmark's official numbers, and sent to its server: tuned heads, captioners, and pre-trained systems as they are."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intarsia import caption_runs
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.evaluate.benchmark import Measured, boxes_of, evaluate, evaluate_pairs, evaluate_words
from intarsia.evaluate.cloze import evaluate_cloze
from intarsia.evaluate.rerank import BASELINES, Prefilter, by_baseline, by_towers
from intarsia.evaluate.running import FP32, Inference, plain
from intarsia.features.extractor import must_be_alike, where_to_run
from intarsia.features.kmeans import CODEBOOK
from intarsia.model import open as open_model
from intarsia.model import read_provenance
from intarsia.system import FineTuned, Given, System
from intarsia.systems import find
from intarsia.tasks import benchmarks
from intarsia.tasks.benchmarks import Annotated, Benchmark
from intarsia.tasks.benchmarks.captions import measure_java, picture_of
from intarsia.tasks.benchmarks.items import at, read_json
from intarsia.text import Vocab
from intarsia.tuned import Tuned, with_labels
from intarsia.tuning_runs import ABOUT, About, config_of, must_read, open_items, pairing
from intarsia.weights.files import fill, read_weights


@dataclass(frozen=True)
class Asked:
    """What is to be measured."""

    run: Path
    """Folder of a fine-tuning run; or of pre-training, for pairs that are ranked without any tuning."""
    split: str = ""
    """Of the benchmark; "" = that for validation, "val" or the second one."""
    data: Path | None = None
    """Folder of the annotation files; None = those it was trained on."""
    regions: str | None = None
    """Where the pictures are; None = as in training."""
    given: str | None = None
    """Where they are with regions of annotated boxes, if the task tests with them; None = as in training."""
    benchmark: str | None = None
    """Another one than it was trained on, of the same kind."""
    blind: bool = False
    """Also what training items give without pictures: a baseline, or of captions the commonest, said of every picture."""
    most: int = 0
    """Captions that are ranked at the most; 0 = all."""
    prefilter: str = ""
    """Of pairs, what ranks them before: "ridge", "nearest" (fitted on the training items), or the run folder of a system of two towers."""
    top: int = 20
    """Candidates of each query that are then read."""
    convention: str = ""
    """How is counted, where papers differ; "" = the benchmark's default."""
    beams: int = 0
    """Of captions; 0 = as in the paper, 1 = greedy."""
    centroids: Path | None = None
    """Codebook of visual words; None = that of training, if there was one."""
    rationales: Path | None = None
    """Of a run tuned on the answers of VCR, the one tuned on its rationales; of a run of many tasks itself: both are then measured together."""
    named: caption_runs.Named | None = None
    """Of captions, objects that they are to name."""
    device: str = "cpu"
    how: Inference = FP32


@dataclass(frozen=True)
class Opened:
    """A run in evaluation mode, and the items it is measured on."""

    system: System
    benchmark: Benchmark
    source: Annotated
    data: Path
    regions: str
    labels: tuple[str, ...]
    centroids: str
    away: bool
    """The benchmark is another than that of training."""
    given: str = ""
    how: Given | None = None

    def train(self) -> Annotated:
        """The training items."""
        return open_items(
            self.benchmark,
            self.data,
            self.regions,
            self.benchmark.splits[0],
            self.labels,
            self.centroids,
            self.given,
            self.how,
        )


def open_tuned(run: Path, about: About) -> Tuned:
    """A system with its head from a run folder.

    Raises:
        BadInput: it is no whole run.
    """
    cls, found = pairing(about.system, about.task)
    found = with_labels(found, about.labels) if about.labels else found
    system = cls(config_of(cls, about, found, run), Vocab.read(run / "vocab.txt"))
    tuned = Tuned(FineTuned(system, found), about.task)
    fill(tuned, read_weights(run / "model.safetensors"), str(run / "model.safetensors"))
    return tuned


def opened(asked: Asked) -> Opened:
    """Opens a run and the items that it is measured on.

    Raises:
        BadInput: it is no whole run; the benchmark is of another kind than its own; its features are others than those of the pictures; or, of a pre-training
            run, it is not said on what it is to be measured.
    """
    run, labels, device = asked.run, tuple[str, ...](), where_to_run(asked.device)
    data, regions, trained, words = asked.data, asked.regions, "", str(asked.centroids or "")
    given, how = asked.given, None
    if (run / ABOUT).is_file() or not (run / "recipe.json").is_file():
        about = About.read(run, asked.benchmark or "")
        writes = about.task == caption_runs.TASK
        system: System = caption_runs.open_run(run, about) if writes else open_tuned(run, about)
        words = words or about.centroids
        how = None if writes else pairing(about.system, about.task)[1].given
        given = about.given if given is None and how and how.tested else given
        data, regions, trained, labels = (
            data or Path(about.data),
            regions or about.regions,
            about.benchmark,
            about.labels,
        )
    else:
        system = open_model(_system_of(run), weights=run).system
    if data is None or regions is None or not (asked.benchmark or trained):
        raise BadInput(f"{run}: a run of pre-training: say on what, with --benchmark, --data and --regions")
    benchmark = benchmarks.find(asked.benchmark or trained)
    if trained and benchmark.kind != benchmarks.find(trained).kind:
        raise BadInput(f"{run}: tuned for {trained}; {benchmark.name} asks for {benchmark.kind}")
    if not trained and benchmark.kind not in ("pairs", "words", "cloze"):
        raise BadInput(f"{run}: a run of pre-training ranks pairs; {benchmark.name} asks for {benchmark.kind}")
    if benchmark.kind == "words" and not words and (run / CODEBOOK).is_file():
        words = str(run / CODEBOOK)
    split = asked.split or ("val" if "val" in benchmark.splits else benchmark.splits[min(1, len(benchmark.splits) - 1)])
    if given and how and not how.tested:
        raise BadInput(f"--given {given}: the paper has annotated boxes beside detected ones in training only")
    source = open_items(benchmark, data, regions, split, labels, words, given or "", how)
    whole = getattr(system, "system", system)
    must_read(type(whole), source)
    if (whole.reads_features or "clips" in whole.needs) and (run / "provenance.json").is_file():
        must_be_alike(regions, source.provenance, read_provenance(run))
    system = system.to(device).eval()
    away = bool(trained) and benchmark.name != trained
    return Opened(system, benchmark, source, data, regions, labels, words, away, given or "", how)


def _system_of(run: Path) -> str:
    path = run / "recipe.json"
    return str(at(read_json(path), "system", str(path)))


def measure(asked: Asked) -> tuple[Measured, Mapping[str, Any], Annotated]:
    """The official numbers of a run; a pass over pairs that was killed goes on from what it left in the run's folder.

    Returns:
        The numbers; the predictions by item, lists by text or captions by picture; and the items.

    Raises:
        BadInput: see `opened`; or what is asked for does not go with the benchmark.
    """
    if asked.rationales is not None:
        return _answers_and_rationales(asked, asked.rationales)
    x = opened(asked)
    if (asked.beams or asked.named) and x.benchmark.kind != "captions":
        raise BadInput("--beams and --objects: for runs that write captions")
    if (asked.prefilter or asked.most) and not x.benchmark.ranks:
        raise BadInput(f"--prefilter and --most: {x.benchmark.name} does not rank pairs")
    x.benchmark.counting(asked.convention)
    if x.benchmark.kind == "words":
        named, scores = evaluate_words(x.system, x.benchmark, x.source)
        return named, scores, x.source
    if x.benchmark.kind == "cloze":
        return *evaluate_cloze(x.system, x.benchmark, x.source, asked.how), x.source
    if x.benchmark.kind == "captions":
        return *_written(x, asked), x.source
    first = _first(x, asked) if asked.prefilter else None
    if x.benchmark.ranks:
        keep = asked.run / f"scores-{x.benchmark.name}-{x.source.annotations.split}"
        found, said = evaluate_pairs(
            x.system, x.benchmark, x.source, asked.most, asked.how, first, keep, asked.convention
        )
        shutil.rmtree(keep, ignore_errors=True)
        return found, said, x.source
    assert isinstance(x.system, Tuned)
    found, predictions = evaluate(
        x.system, x.benchmark, x.source, x.train() if asked.blind else None, asked.how, asked.convention
    )
    return found, predictions, x.source


def _answers_and_rationales(asked: Asked, other: Path) -> tuple[Measured, dict[str, Any], Annotated]:
    """VCR by two heads, apart or in one run: the two questions of each line together.

    Raises:
        BadInput: see `measure`; or one of the runs was not tuned for its question.
    """
    found, said, source = measure(replace(asked, blind=False, rationales=None, benchmark="vcr-answers"))
    more, also, beside = measure(replace(asked, run=other, blind=False, rationales=None, benchmark="vcr-rationales"))
    whole, both = benchmarks.find("vcr"), {**said, **also}
    items = (*source.annotations.items, *beside.annotations.items)
    joined = Annotated(replace(source.annotations, items=items), source.pictures)
    assert whole.measure is not None
    numbers = whole.measure(joined.annotations, both) if joined.annotations.gold else {}
    left = Counter(found.left_out) + Counter(more.left_out)
    return Measured(whole.name, found.split, len(both), numbers, dict(left), found.chance), both, joined


def _written(x: Opened, asked: Asked) -> tuple[Measured, dict[str, str]]:
    """The numbers of captions; METEOR and SPICE if their jars are there."""
    written = caption_runs.write(x.system, x.source, asked.beams, named=asked.named)
    wanted = {picture_of(item.key) for item in x.source.annotations.items}
    out = {"no regions": len(wanted) - len(written)} if len(written) < len(wanted) else {}
    numbers, without = dict[str, float](), None
    if x.source.annotations.gold:
        assert x.benchmark.measure_captions is not None
        java, missing = measure_java(x.source.annotations, written)
        numbers = x.benchmark.measure_captions(x.source.annotations, written) | java
        out |= {f"{name}: {reason}": len(written) for name, reason in missing.items()}
        if asked.blind and not x.away:
            common = Counter(item.texts[0] for item, _ in x.train().kept).most_common(1)[0][0]
            same = dict.fromkeys(written, common)
            without = x.benchmark.measure_captions(x.source.annotations, same)[x.benchmark.main]
    split = x.source.annotations.split
    return Measured(x.benchmark.name, split, len(written), numbers, out, blind=without), written


def _first(x: Opened, asked: Asked) -> Prefilter:
    """The first ranking of two.

    Raises:
        BadInput: it is neither a baseline nor the run of a system of two towers, its features are others, or no candidate would be read.
    """
    if asked.top < 1:
        raise BadInput(f"--top {asked.top}: at least one candidate is read")
    if asked.prefilter in BASELINES:
        seen = x.train()
        return Prefilter(by_baseline(asked.prefilter, [seen[i] for i in range(len(seen))]), asked.top)
    run = Path(asked.prefilter)
    name = _system_of(run)
    if not find(name).towers:
        raise BadInput(f"--prefilter {run}: {name} has no two towers: it ranks nothing beforehand")
    model = open_model(name, weights=run, device=asked.device)
    if "regions" in model.system.needs and model.provenance is not None:
        must_be_alike(x.benchmark.name, x.source.provenance, model.provenance)
    return Prefilter(by_towers(model.system, asked.how), asked.top)


def submit(asked: Asked, out: Path) -> int:
    """Writes the file of the benchmark's server; gives the number of items in it.

    Raises:
        BadInput: the benchmark has no server, or an item has no prediction.
    """
    name = "vcr" if asked.rationales else asked.benchmark or About.read(asked.run).benchmark
    benchmark = benchmarks.find(name)
    write: Any = benchmark.submit or benchmark.submit_captions or benchmark.submit_lists or benchmark.submit_regions
    if write is None:
        also = "; with the run of the rationales, --rationales RUN, it has" if benchmark.name == "vcr-answers" else ""
        raise BadInput(f"{benchmark.name}: has no server to send predictions to{also}")
    found, said, source = measure(asked)
    lacking = {x: n for x, n in found.left_out.items() if x in ("no regions", "too long")}
    if lacking:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lacking.items())
        raise BadInput(f"{out}: the server wants every item of {asked.split}: {reasons}")
    with write_whole(out) as temporary:
        write(temporary, source.annotations, said, *([boxes_of(source, said)] if benchmark.submit_regions else []))
    return len(said)


def told(found: Measured) -> dict[str, Any]:
    """Measured numbers as JSON values."""
    return plain(found)  # type: ignore[no-any-return]
