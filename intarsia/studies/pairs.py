"""The table of docs/tasks.md: every task of every paper, its benchmark, the score that was published, and what was reached on the generated twin.

python -m intarsia.studies.pairs docs/tasks.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.systems import SYSTEMS, find
from intarsia.tasks.benchmarks import benchmark_of

RESULTS = "twins.json"
BEGIN, END = "<!-- pairs: begin -->", "<!-- pairs: end -->"

PUBLISHED: dict[tuple[str, str], str] = {
    ("visualbert", "vqa"): "test-dev 70.80, std 71.00 (M)",
    ("visualbert", "nlvr2"): "dev 67.4, test-P 67.0 (T)",
    ("visualbert", "vcr"): "test 71.6, 73.2, 52.4 (T)",
    ("visualbert", "ground"): "R@1 71.33, R@5 84.98, R@10 86.51 (T)",
    ("vl_bert", "vqa"): "test-dev 71.16 (M)",
    ("vl_bert", "vcr"): "large: test 75.8, 78.4, 59.7 (M)",
    ("vl_bert", "re"): "RefCOCO+ val 79.88 annotated boxes, 71.60 detected (M)",
    ("unicoder_vl", "retrieval"): "Flickr30k R@1 71.5 image, 86.2 text (T)",
    ("unicoder_vl", "vcr"): "test 73.4, 74.4, 54.9 (M)",
    ("b2t2", "vcr"): "test 72.6, 75.7, 55.0 (M)",
    ("uniter", "vqa"): "test-dev 72.70, std 72.91 (M)",
    ("uniter", "ve"): "val 78.59, test 78.28 (M)",
    ("uniter", "nlvr2"): "dev 77.18, test-P 77.85 (M)",
    ("uniter", "vcr"): "test 75.0, 77.2, 58.2 (M)",
    ("uniter", "retrieval"): "Flickr30k R@1 72.52 image, 85.90 text (M)",
    ("uniter", "re_plus"): "RefCOCO+ val 83.66 annotated boxes, 75.31 detected (M)",
    ("vlp", "vqa"): "test-dev 70.5, std 70.7 (R)",
    ("fashionbert", "retrieval_fashion"): "FashionGen, 101 candidates: R@1 24.32 text, 28.95 image (R)",
    ("oscar", "vqa"): "std 73.44 (R)",
    ("oscar", "gqa"): "std 61.62 (R)",
    ("oscar", "nlvr2"): "test-P 78.36 (R)",
    ("oscar", "nlvr2_plus"): "test-P 83.08 (R)",
    ("oscar", "retrieval"): "COCO 5k R@1 54.0 image, 70.0 text (R)",
    ("cbt", "action"): "frozen features: 54.0, mean of three splits (M)",
    ("cbt", "action_hmdb51"): "frozen features: 29.5, mean of three splits (M)",
    ("cbt", "anticipation"): "32.7 (M)",
    ("cbt", "anticipation_50salads"): "39.1 (M)",
    ("cbt", "anticipation_activitynet"): "59.8 (M)",
    ("imagebert", "retrieval"): "Flickr30k R@1 73.1 image, 87.0 text (M)",
    ("pixel_bert", "vqa"): "r50: test-dev 71.35, std 71.42 (T)",
    ("pixel_bert", "nlvr2"): "r50: dev 71.7, test-P 72.4 (M)",
    ("pixel_bert", "retrieval"): "r50: Flickr30k R@1 53.4 image, 75.7 text (M)",
    ("vilbert", "vqa"): "12-in-1: test-dev 73.15 (M)",
    ("vilbert", "gqa"): "12-in-1: 60.65 (M)",
    ("vilbert", "retrieval"): "12-in-1: R@1 67.90 image (M)",
    ("vilbert", "nlvr2"): "12-in-1: test-P 78.87 (M)",
    ("vilbert", "beta_vqa"): "test-dev 70.55, std 70.92 (M)",
    ("vilbert", "beta_vcr"): "test 73.3, 74.6, 54.8 (M)",
    ("vilbert", "beta_re_plus"): "RefCOCO+ val 72.34 detected (M)",
    ("vilbert", "beta_retrieval"): "Flickr30k R@1 58.20 image (M)",
    ("lxmert", "vqa"): "test-dev 72.42, std 72.54 (R)",
    ("lxmert", "gqa"): "testdev 60.00, std 60.33 (R)",
    ("lxmert", "nlvr2"): "dev 74.95, test-P 74.45 (R)",
    ("ernie_vil", "vqa"): "test-dev 73.18, std 73.36 (R)",
    ("ernie_vil", "vcr"): "Q to A 77.0, QA to R 80.3, Q to AR 62.1 (R)",
    ("ernie_vil", "re"): "RefCOCO+ val 74.02 detected (R)",
    ("ernie_vil", "retrieval"): "Flickr30k R@1 74.44 image, 86.70 text (R)",
}
"""Base size unless named. R = the authors' repository, T = listed by others, M = from memory of the paper, to be checked before it is a target."""


def head_of(task: Any) -> str:
    """The task's class; of one whose head is shared, that of the task it holds."""
    inner = getattr(task, "task", None)
    return type(task).__name__ if inner is None else f"{type(inner).__name__}, shared heads"


Results = Mapping[str, Mapping[str, Any]]
"""By system and task, what was reached on the twin; see `studies.twin_results`."""


def read_results(page: Path) -> Results:
    """The results beside a page; none if the file is not there."""
    path = page.parent / RESULTS
    return json.loads(path.read_text()) if path.is_file() else {}


def on_twin(found: Mapping[str, Any] | None) -> str:
    """What was reached, by the words alone, by chance, in percent; "-" where it was not run or is not known."""
    if found is None:
        return "-"
    return " / ".join(
        "-" if x is None else f"{100 * x:.1f}" for x in (found[y] for y in ("reached", "blind", "chance"))
    )


def table(results: Results) -> str:
    """The table, as Markdown."""
    names = ("system", "task", "benchmark by default", "loss and head", "published", "twin")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name in SYSTEMS:
        tasks = find(name).finetune
        for task, described in tasks.items():
            title = benchmark_of(task, tasks).title
            said, reached = PUBLISHED.get((name, task), "-"), on_twin(results.get(f"{name} {task}"))
            rows.append(f"| {name} | `{task}` | {title} | {head_of(described.task)} | {said} | {reached} |")
        if (how := find(name).captioning) is not None:
            title = benchmark_of("caption", tasks, "clips" in find(name).needs).title
            reached, loss = on_twin(results.get(f"{name} caption")), "its own words"
            loss += ", then self-critical" if how.critical else ""
            rows.append(f"| {name} | `caption` | {title} | {loss} | {how.published or '-'} | {reached} |")
    return "\n".join(rows) + "\n"


def write(page: Path) -> None:
    """Puts the table between the two marks of a page.

    Raises:
        BadInput: the page lacks a mark.
    """
    text, made = page.read_text(encoding="utf-8"), table(read_results(page))
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise BadInput(f"{page}: lacks {BEGIN} or {END}")
    before, _, rest = text.partition(BEGIN)
    with write_whole(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
