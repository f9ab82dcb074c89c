"""The table of docs/tasks.md: every task of every paper, its benchmark, the score that was published, and what was reached on the generated twin.

python -m intarsia.studies.pairs docs/tasks.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.systems import SYSTEMS, find, scores
from intarsia.tasks.benchmarks import benchmark_of

BEGIN, END = "<!-- pairs: begin -->", "<!-- pairs: end -->"


def head_of(task: Any) -> str:
    """The task's class; of one whose head is shared, that of the task it holds."""
    inner = getattr(task, "task", None)
    return type(task).__name__ if inner is None else f"{type(inner).__name__}, shared heads"


def table() -> str:
    """The table, as Markdown."""
    names = (
        "system",
        "task",
        "benchmark by default",
        "loss and head",
        "published",
        "twin: reached / tuned blind / words alone / chance",
    )
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name in SYSTEMS:
        tasks, known = find(name).finetune, scores(name)
        for task, described in tasks.items():
            title = benchmark_of(task, tasks).title
            said, reached = known[task].published or "-", known[task].on_twin
            rows.append(f"| {name} | `{task}` | {title} | {head_of(described.task)} | {said} | {reached} |")
        if (how := find(name).captioning) is not None:
            title = benchmark_of("caption", tasks, "clips" in find(name).needs).title
            loss = "its own words" + ", then self-critical" * bool(how.critical)
            said, reached = known["caption"].published or "-", known["caption"].on_twin
            rows.append(f"| {name} | `caption` | {title} | {loss} | {said} | {reached} |")
        if "words" in known:
            title = benchmark_of("words", tasks).title
            said, reached = known["words"].published or "-", known["words"].on_twin
            rows.append(f"| {name} | `words` | {title} | as pre-trained | {said} | {reached} |")
    return "\n".join(rows) + "\n"


def write(page: Path) -> None:
    """Puts the table between the two marks of a page.

    Raises:
        BadInput: the page lacks a mark.
    """
    text, made = page.read_text(encoding="utf-8"), table()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise BadInput(f"{page}: lacks {BEGIN} or {END}")
    before, _, rest = text.partition(BEGIN)
    with write_whole(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
