"""Pages and pictures are whole, self-contained and say what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.cli import main
from intarsia.systems import SYSTEMS
from intarsia.viz.match import draw_match


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("page") / "run"
    short = ["--schedule.steps", "30", "--batching.rows", "200", "--workers", "0"]
    main(["pretrain", "uniter", "--data", "worlds:60", "--valid", "worlds:20:1", "--out", str(run), *short])
    order = ["--weights", str(run), "--data", "worlds", "--count", "16", "--report", str(run / "report.html")]
    main(["evaluate", "uniter", *order])
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_report_is_one_file(page: str) -> None:
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert "<script" not in page
    assert page.count("<svg") + page.count("data:image") >= 12


@pytest.mark.parametrize(
    "part", ["generated", "mlm", "mrfr", "mrc_kl", "itm", "wra", "R@1", "R@10", "chance", "transport", "without"]
)
def test_the_report_says(page: str, part: str) -> None:
    assert part in page


def test_the_report_shows_twelve_pictures_with_verdicts(page: str) -> None:
    assert len(re.findall(r"<figure|<article|class=\"card", page)) >= 12
    assert "✓" in page
    assert "✗" in page


@pytest.mark.parametrize("name", list(SYSTEMS))
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_every_system_draws_itself(tmp_path: Path, name: str, kind: str) -> None:
    out = tmp_path / f"figure.{kind}"
    main(["show", "system", name, "--out", str(out)])
    if kind == "png":
        with Image.open(out) as drawn:
            assert min(drawn.size) > 300
            assert len(set(drawn.convert("L").resize((64, 64)).tobytes())) > 10
    else:
        assert "<svg" in out.read_text(encoding="utf-8")


def test_a_target_that_is_written_is_not_called_exchanged(tmp_path: Path) -> None:
    for name, said, unsaid in (("m6", "names the next piece", "exchanged"), ("vlp", "exchanged", "names the next")):
        main(["show", "system", name, "--out", str(tmp_path / "figure.svg")])
        drawn = (tmp_path / "figure.svg").read_text(encoding="utf-8")
        assert said in drawn and unsaid not in drawn


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("videobert", ["one encoder over words and clips", "mlm_joint", "another text", "clips"]),
        ("cbt", ["attention over words and clips together", "nce", "mi", "clips"]),
    ],
)
def test_systems_that_read_clips_show_clips_and_what_is_trained(tmp_path: Path, name: str, said: list[str]) -> None:
    main(["show", "system", name, "--out", str(tmp_path / "x.svg")])
    drawn = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert all(x in drawn for x in said)
    assert "regions" not in drawn and "nce_found" not in drawn
    assert drawn.count("<image") >= 7  # the block of who sees whom, and a frame of each clip of three documents


def test_a_match_is_drawn(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    weights = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)
    draw_match(
        np.full((60, 90, 3), 200, np.uint8), ("a", "red", "cup"), boxes, weights, "a red cup", tmp_path / "x.png"
    )
    with Image.open(tmp_path / "x.png") as drawn:
        assert min(drawn.size) > 300
