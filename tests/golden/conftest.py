"""Writes the parity page from what the golden tests compared: `make parity`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from golden import COMPARED

from intarsia.systems import SYSTEMS, find

ROOT = Path(__file__).parents[2]
HEAD = """# Parity with the authors' code

Each system is run on the random weights and inputs that its authors' own code was run on (fp32, CPU, dropout off); this page is written by the tests
that compare the two (`make parity`). The difference is the largest of any number in any tensor; the tests allow 2e-5. Other cases in the same form, of any size and length, are
tried from folders named in INTARSIA_GOLDEN: `INTARSIA_GOLDEN=DIR python -m pytest tests/golden`, with `DIR/vlp.json` or `DIR/vlp_case2.json` and their tensors.
"""


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not os.environ.get("INTARSIA_WRITE_PARITY") or exitstatus:
        return
    pages, figures = [HEAD], {}
    for name in SYSTEMS:
        tests = {test: worst for file, found in COMPARED.items() if _of(file) == name for test, worst in found.items()}
        if not tests:
            continue
        rows = [
            f"| {test.removeprefix('test_').replace('_', ' ')} | {len(worst)} | {max(worst):.1e} |"
            for test, worst in tests.items()
        ]
        card = find(name).card
        pages.append(
            f"\n## {card.title.split(':')[0]}\n\nAuthors' code: {card.code}\n\n| compared | tensors | largest difference |\n|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
        figures[name] = {
            "tensors": sum(map(len, tests.values())),
            "difference": float(f"{max(map(max, tests.values())):.2e}"),
        }
    (ROOT / "docs/parity.md").write_text("".join(pages))
    (ROOT / "intarsia/systems/parity.json").write_text(json.dumps(figures, indent=2) + "\n")


def _of(file: str) -> str:
    """The system whose test file this is: test_NAME.py or test_NAME_more.py."""
    stem = file.removeprefix("test_")
    return max((name for name in SYSTEMS if stem == name or stem.startswith(name + "_")), key=len, default="")
