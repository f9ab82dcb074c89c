"""The systems by name. A new system is one file, one line here and one golden file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from intarsia.errors import BadInput

if TYPE_CHECKING:
    from intarsia.system import System

SYSTEMS = {
    "uniter": "uniter:UNITER",
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
