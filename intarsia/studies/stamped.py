"""The arms of `studies.granularity` on real pictures: the stamps with their English captions, whose test pictures show stamps of no training picture.

    python -m intarsia.studies.stamped --data stamps-light --page docs/studies/granularity.md

`--data` is made as docs/stamps.md says. There are no false captions, so nothing is said of binding; gold links are those of what was pasted to the detector's boxes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from intarsia.data.corpora import Subset, speaking
from intarsia.data.opening import open_source
from intarsia.pack import pack
from intarsia.studies import granularity, tying
from intarsia.studies.family import write_section
from intarsia.studies.granularity import PAIRS, begin, learn
from intarsia.studies.readouts import MAPS, TOLD
from intarsia.studies.runs import KEPT, WORK, Results, known, once, program
from intarsia.studies.tables import Claim, Value, at, best, compared, report
from intarsia.studies.tying import RANKED, Scene
from intarsia.systems.inlay import Inlay
from intarsia.text import Vocab
from intarsia.train.start import captions


@dataclass(frozen=True)
class Run(granularity.Run):
    """One run; fields of worlds say nothing here."""

    @property
    def file(self) -> Path:
        """Of its result, below the folder of the study."""
        arm = self.arm.replace(", ", "-")
        return (
            Path(f"steps{self.steps}")
            / f"stamps-n{self.pairs}-batch{self.batch}-lr{self.lr:g}-{arm}-seed{self.seed}.json"
        )


@cache
def english(data: str, split: str) -> Subset:
    """Pairs with English captions."""
    return speaking(open_source(data, split), "en")


@cache
def words(data: str) -> Vocab:
    """Of all English captions of training."""
    return captions(english(data, "train"))


def perform(run: Run, data: str, folder: Path, work: Path = WORK, device: str = "cpu") -> dict[str, Any]:
    """Makes a run, or reads what it left when it was made before. Args: see `granularity.perform`; data, a folder with stamps and their regions."""

    def make() -> dict[str, Any]:
        train, test = english(data, "train"), english(data, "test")
        system, recipe = begin(run, train, words(data))
        looked = Subset(test, np.arange(min(len(test), 2 * run.batch)))
        found = learn(run, system, recipe, train, looked, work / run.file.stem, device)
        began = time.process_time()
        return found | {"test": measure(system, test), "cpu seconds of measuring": time.process_time() - began}

    return once(folder / run.file, make)


def scenes(system: Inlay, source: Subset) -> list[Scene]:
    """All pairs that have a gold link, laid out; the rows linked to each region stand for a word."""
    found = []
    for i in range(len(source)):
        sample = source[i]
        example = system.lay_out(sample)
        links = example.links
        groups = tuple(("phrase", np.unique(links[links[:, 1] == region, 0])) for region in np.unique(links[:, 1]))
        if groups:
            found.append(Scene(i, sample, example, groups))
    return found


@torch.no_grad()
def measure(system: Inlay, source: Subset) -> dict[str, Any]:
    """Pointing, alignment, retrieval among all pairs with links, and what hidden regions cost; and with pictures exchanged."""
    system.eval()
    known = scenes(system, source)
    batch = pack([x.example for x in known])
    encoded = system.encode(batch)
    shuffled = tying._exchange(batch)
    again = system.encode(shuffled)
    return {
        "scenes": len(known),
        "pointing": tying._pointing(system, known, batch, encoded) | {"occlusion": tying.occlusion(system, known)},
        "alignment": tying._alignment(system, known, system.alignments(encoded, batch)["alignment"].numpy()),
        "retrieval": tying._retrieval(system, encoded, batch),
        "ablation": tying._ablation(system, known),
        "exchanged": {
            "pointing": tying._pointing(system, known, shuffled, again),
            "retrieval": tying._retrieval(system, again, shuffled),
        },
    }


CLAIMS: dict[str, Claim] = {
    "pointing, best": Claim("test", best("pointing", among=MAPS), at("pointing", "chance")),
    "t2i R@1, best": Claim("test", best("retrieval", key="t2i R@1", among=RANKED), lambda x: 1 / x["scenes"]),
    "t2i R@10, best": Claim("test", best("retrieval", key="t2i R@10", among=RANKED), lambda x: 10 / x["scenes"]),
    "i2t R@1, best": Claim("test", best("retrieval", key="i2t R@1", among=RANKED), lambda x: 1 / x["scenes"]),
    "i2t R@10, best": Claim("test", best("retrieval", key="i2t R@10", among=RANKED), lambda x: 10 / x["scenes"]),
}
COMPARED = compared(CLAIMS)
MEASURES: dict[str, Value] = {
    **{f"pointing, {told}": at("test", "pointing", name) for name, told in zip(MAPS, TOLD, strict=True)},
    "pointing, occlusion (no part of best)": at("test", "pointing", "occlusion"),
    "link AUC": at("test", "alignment", "auc"),
    **{f"t2i R@10, {x}": at("test", "retrieval", x, "t2i R@10") for x in RANKED},
    **{f"word cross entropy, hidden regions: {x}": at("test", "ablation", x) for x in ("none", "linked", "random", "all")},
    "CPU seconds of training": at("cpu seconds"),
}  # fmt: skip


@dataclass
class Stamped:
    """The runs to make, and the page of all that are there."""

    data: str = "stamps-light"
    """Stamps with the regions of the extractor `light`."""
    out: Path = KEPT / "stamped"
    arms: tuple[str, ...] = ("sentence", "token", "both", "blind")
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    steps: int = Run.steps
    batch: int = Run.batch
    lr: float = Run.lr
    device: str = "cpu"
    page: Path | None = None
    make: bool = True
    """False = only the page, from the runs that are there."""


def tell(results: Results) -> str:
    """What was run and what it says, as Markdown."""
    one = next(iter(next(iter(results.values())).values()))
    run: Mapping[str, Any] = one["run"]
    seeds = ", ".join(str(x) for x in sorted({s for runs in results.values() for s in runs}))
    about = f"{run['pairs']} pairs, {run['steps']} steps of {run['batch']}, rate {run['lr']:g}; {one['test']['scenes']} test pairs; seeds {seeds}."
    return f"{about}\n\n{report(results, CLAIMS, MEASURES, PAIRS)}"


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs seed by seed and prints the tables."""
    options = tyro.cli(Stamped, args=args, prog="python -m intarsia.studies.stamped")
    torch.set_num_threads(1)
    same: dict[str, Any] = {x: getattr(options, x) for x in ("steps", "batch", "lr")}
    for seed, arm in product(options.seeds, options.arms) if options.make else ():
        run = Run(arm=arm, seed=seed, pairs=len(english(options.data, "train")), **same)
        perform(run, options.data, options.out, device=options.device)
    told = tell(known(options.out, {x: {} for x in options.arms}, dataclasses.asdict(Run()), **same))
    print(told)
    if options.page:
        write_section(options.page, "stamps", told, "stamped")


if __name__ == "__main__":
    program(main, "stamped")
