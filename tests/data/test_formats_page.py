"""What docs/formats.md says of layouts is what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

from intarsia.cli_data import Convert
from intarsia.data.convert import LAYOUTS

PAGE = Path(__file__).parents[2] / "docs/formats.md"


def rows() -> list[list[str]]:
    table = PAGE.read_text(encoding="utf-8").split("## Every format")[1].split("\n\nNot read")[0]
    cells = [
        [x.strip() for x in re.split(r"(?<!`)\\|\|", line)[1:-1]] for line in table.splitlines() if line.startswith("|")
    ]
    return [row for row in cells if len(row) == 5 and row[0] and not row[0].startswith(("**", "-", "format"))]


def test_every_layout_that_is_written_is_in_the_table_and_no_other() -> None:
    layouts = [x for row in rows() if "W" in row[2].split() for x in re.findall(r"`([\w-]+)`", row[3])]
    assert sorted(layouts) == sorted(get_args(get_type_hints(Convert)["layout"]))
    assert set(LAYOUTS) <= set(layouts)


def test_every_row_says_what_reads_it_and_how_it_is_tested() -> None:
    assert len(rows()) > 50
    for row in rows():
        assert "R" in row[2].split() or not row[2], row[0]
        assert row[4] or row[0] == "region shards", row[0]
