"""intarsia: the vision-language pre-training systems of 2019-2021 in one library.

import intarsia
model = intarsia.open("uniter", weights="runs/demo")
model.match("photo.jpg", "a red cup").probability
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from intarsia.model import Model, open

__all__ = ["Model", "open"]


def __getattr__(name: str) -> Any:
    """Loads `open` and `Model` (and with them torch) when first asked for."""
    if name in __all__:
        from intarsia import model

        return getattr(model, name)
    raise AttributeError(f"module 'intarsia' has no attribute {name!r}")
