"""Attention calls become levels: side by side between meetings, repeats told once."""

from __future__ import annotations

from intarsia.viz.streams import Level, Stage, levels, stages, tall

SELF = {"words": ("words", "words"), "regions": ("regions", "regions")}
MEET = [("words", "regions"), ("regions", "words")]


def test_a_dual_stream() -> None:
    calls = [SELF["words"], *MEET, SELF["words"], SELF["regions"], *MEET, SELF["regions"], SELF["words"]]
    both = Level(asks=("words", "regions"))
    assert levels(calls) == [Level(words=1), both, Level(words=1, regions=1), both, Level(words=1, regions=1)]
    assert len(stages(calls)) == 5


def test_two_towers_and_one_way_meetings() -> None:
    assert levels([SELF["words"]] * 3 + [SELF["regions"]] * 2) == [Level(words=3, regions=2)]
    found = levels([("words", "regions"), ("words", "regions"), ("both", "both"), ("both", "both"), ("", "words")])
    assert found == [Level(asks=("words",)), Level(asks=("words",)), Level(both=2)]


def test_what_repeats_is_told_once() -> None:
    calls = [SELF["words"]] * 6 + [*MEET, SELF["words"], SELF["regions"]] * 6
    meet, after = Level(asks=("words", "regions")), Level(words=1, regions=1)
    assert stages(calls) == [Stage((Level(words=6),)), Stage((meet, after), 6)]
    assert tall(stages(calls)) < 1
