"""What a recipe keeps when the data lack labels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intarsia.data.source import Provenance
from intarsia.recipe import Mix
from intarsia.systems import find
from intarsia.train.start import without_classes

LABELLED = Provenance("x", 6, classes=("background", "a"), attributes=("none", "red"))


def test_goals_that_lose_a_part_begin_when_they_did() -> None:
    recipe = replace(
        find("lxmert").recipes["tiny"],
        mix=Mix({"mlm+obj+qa": 1, "mlm+itm+obj+qa": 2, "mlm+itm+obj": 3}, {"mlm+itm+obj+qa": 0.3, "mlm+itm+obj": 0.5}),
    )
    found, gone = without_classes(recipe, LABELLED, ())
    assert gone == ("qa",)
    assert found.mix.share == {"mlm+obj": 1, "mlm+itm+obj": 5}
    assert found.mix.begin == {"mlm+itm+obj": 0.3}
    bare, gone = without_classes(recipe, Provenance("x", 6), ())
    assert set(gone) == {"qa", "obj"}
    assert bare.mix.begin == {"mlm+itm": 0.3}
    assert without_classes(recipe, LABELLED)[0].mix == recipe.mix


@pytest.mark.parametrize("name", ["lxmert", "imagebert", "unicoder_vl", "vilbert", "ernie_vil"])
def test_tiny_recipes_name_goals_that_they_have(name: str) -> None:
    recipe = find(name).recipes["tiny"]
    for provenance in (LABELLED, Provenance("x", 6)):
        mix = without_classes(recipe, provenance, ())[0].mix
        assert mix.begin.keys() <= mix.share.keys()
        assert max(mix.begin.values()) > 0
