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
