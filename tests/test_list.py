"""`intarsia list` tells everything that a card holds, cut nowhere."""

from __future__ import annotations

import pytest

from intarsia import cli
from intarsia.systems import SYSTEMS, find, parity, scores


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_is_cut_nowhere(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.out, "width", width)
    cli.main(["list"])
    said = capsys.readouterr().out
    assert "…" not in said
    if width == 200:
        for name in SYSTEMS:
            row = next(line for line in said.splitlines() if line.startswith(f"│ {name} "))
            near = parity(name)
            assert ("none" if near is None else f"over {near.tensors} tensors") in row
            assert f"{len(find(name).card.unverified)} facts" in row


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_one_system_is_told_in_full(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["list", name])
    said = capsys.readouterr().out
    cls, near = find(name), parity(name)
    card = cls.card
    for fact in (*card.unverified, *card.objectives, *card.tasks, *card.weights, card.paper, card.venue, card.streams):
        assert fact in said
    for size, recipe in cls.recipes.items():
        assert f"recipe {size}: rate {recipe.optim.lr:g}, {recipe.schedule.steps:,} steps" in said
        assert recipe.note in said
    for task, x in scores(name).items():
        assert f"task {task}: published {x.published or '-'}; on the twin" in said
        assert said.split(f"task {task}: ")[1].splitlines()[0].endswith(f"chance: {x.on_twin}")
    assert (f"{near.difference:.1e} at most" if near else "no golden file") in said
    assert ("--start" in said.split("starts from:")[1].splitlines()[0]) == (cls.from_bert is not None)
    if not card.weights:
        assert "weights that load: none published" in said
