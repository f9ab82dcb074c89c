"""The systems by name. A new system is one file, one line here and one golden file."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intarsia.errors import BadInput

if TYPE_CHECKING:
    from intarsia.system import System

SYSTEMS = {
    "visualbert": "visualbert:VisualBERT",
    "vl_bert": "vl_bert:VLBERT",
    "unicoder_vl": "unicoder_vl:UnicoderVL",
    "b2t2": "b2t2:B2T2",
    "uniter": "uniter:UNITER",
    "vlp": "vlp:VLP",
    "fashionbert": "fashionbert:FashionBERT",
    "pixel_bert": "pixel_bert:PixelBERT",
    "oscar": "oscar:Oscar",
    "imagebert": "imagebert:ImageBERT",
    "m6": "m6:M6",
    "videobert": "videobert:VideoBERT",
    "vilbert": "vilbert:ViLBERT",
    "lxmert": "lxmert:LXMERT",
    "ernie_vil": "ernie_vil:ERNIEViL",
    "wenlan": "wenlan:WenLan",
    "cbt": "cbt:CBT",
    "inlay": "inlay:Inlay",
}


def find(name: str) -> type[System]:
    """The class of a named system; imports only that system.

    Raises:
        BadInput: no such system (names the nearest).
    """
    if name not in SYSTEMS:
        import difflib

        near = difflib.get_close_matches(name, SYSTEMS, 1, 0.0)
        raise BadInput(f"no system {name!r}; nearest is {near[0]!r} (all: {', '.join(SYSTEMS)})")
    module, cls = SYSTEMS[name].split(":")
    found: type[System] = getattr(importlib.import_module(f"intarsia.systems.{module}"), cls)
    return found


@dataclass(frozen=True)
class Parity:
    """How near a system is to its authors' code, as the golden tests last measured it."""

    tensors: int
    difference: float
    """The largest, of any number in any tensor, in fp32."""


def parity(name: str) -> Parity | None:
    """What `make parity` wrote of a system; None where there is no golden file."""
    known = json.loads((Path(__file__).parent / "parity.json").read_text())
    return Parity(**known[name]) if name in known else None


@dataclass(frozen=True)
class Scores:
    """What a paper reached in a task, and what this library did on the generated twin of its benchmark."""

    published: str
    """Base size unless named; empty = not known. R = the authors' repository, T = listed by others, M = from memory of the paper, to be checked before it is a
    target."""
    reached: float | None
    """The benchmark's main number at tiny size, a fraction (CIDEr: of 1), as `studies.twin_results` made it; None = not run."""
    blind_tuned: float | None
    """The same system, pre-trained alike, but tuned and scored without the pictures; None = not run."""
    blind: float | None
    """What words, or places of regions, alone tell."""
    chance: float | None

    @property
    def on_twin(self) -> str:
        """Reached / tuned blind / by the words alone / by chance, in percent; "-" where it was not run or is not known."""
        if self.reached is None:
            return "-"
        shown = (self.reached, self.blind_tuned, self.blind, self.chance)
        return " / ".join("-" if x is None else f"{100 * x:.1f}" for x in shown)


def scores(name: str) -> dict[str, Scores]:
    """Those of every task of a system, by task."""
    folder, cls = Path(__file__).parent, find(name)
    published, twins = (json.loads((folder / x).read_text(encoding="utf-8")) for x in ("published.json", "twins.json"))
    tasks = dict.fromkeys(cls.finetune, "")
    if cls.captioning is not None:
        tasks["caption"] = cls.captioning.published
    if hasattr(cls, "ask"):
        tasks["words"] = ""
    found = {}
    for task, said in tasks.items():
        made = twins.get(f"{name} {task}", {})
        twin = [made.get(x) for x in ("reached", "blind_tuned", "blind", "chance")]
        found[task] = Scores(published.get(f"{name} {task}", said), *twin)
    return found
