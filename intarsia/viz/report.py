"""One page about one run: what was measured, beside chance, and pictures of what the system looks at. A single file without scripts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from intarsia.batch import Array, Sample
from intarsia.data.source import Source
from intarsia.errors import BadInput
from intarsia.evaluate import Evaluation, Look, Pointing, Retrieval
from intarsia.evaluate.matching import CUTS
from intarsia.evaluate.running import percent
from intarsia.system import System
from intarsia.viz import style
from intarsia.viz.curves import Metrics, curves_figure, read_metrics
from intarsia.viz.gallery import card, find_cases, pick_cases
from intarsia.viz.page import CSS
from intarsia.worlds.source import WorldSource

_SHOWN = 300  # samples that the gallery chooses from


def write_report(
    path: Path | str, system: System, run: Path | str, found: Evaluation, source: Source | None = None
) -> None:
    """Writes a self-contained HTML page.

    Args:
        path: file to write.
        system: the trained system.
        run: its folder, with recipe.json and metrics.jsonl where they exist.
        found: what was measured.
        source: the held-out samples, for the gallery; pictures come from its `image(i)` or from the samples' files. None = no gallery.

    Raises:
        BadInput: the log is damaged, or the file cannot be written.
    """
    folder = Path(run)
    metrics = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else None
    parts = [
        _head(system, found, source),
        _cards(found),
        _curves(metrics),
        _retrieval(found),
        _words(found),
        _pointing(found.pointing),
        _choices(found),
        _gallery(system, found, source),
        _facts(system, folder, metrics, found),
    ]
    title = f"{system.card.title.split(':')[0]}: report"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(x for x in parts if x)
        + "\n</body></html>\n"
    )
    style.store(Path(path), page.encode())


# ----------------------------------------------------------------------------------------------------------------- head


def _head(system: System, found: Evaluation, source: Source | None) -> str:
    name = escape(system.card.title.split(":")[0])
    if isinstance(source, WorldSource):
        title, said = f"{name} on generated scenes", _world(source)
    else:
        title, said = (
            f"{name} on held-out pairs",
            f"Measured on {found.samples:,} captions with pictures that took no part in training.",
        )
    about = f"{escape(system.card.title)} ({escape(system.card.venue)}): {escape(system.card.new)}."
    return f"<header><h1>{title}</h1><p>{about}</p><p>{said}</p></header>"


def _world(source: WorldSource) -> str:
    """What a generated world is, in plain words."""
    c = source.config
    return (
        f"Everything on this page is <b>generated data</b>: the program draws {c.side} × {c.side} pixel pictures of {c.objects[0]} to {c.objects[1]} "
        f"objects (8 colours, 8 shapes, 2 sizes) and writes a caption that names {c.mentions} of them. Regions are the boxes of the objects, moved a "
        f"little, and {c.background_boxes} random boxes of background; a region's feature is its pixels shrunk to 8 × 8. Because the generator knows "
        f"which words name which box and which captions are false, every number below has an exact answer. The {len(source):,} scenes measured here "
        "took no part in training. It shows that the system learns what it should; it says nothing about photographs."
    )


def _cards(found: Evaluation) -> str:
    cards: list[tuple[str, float, float | None, str]] = []
    if found.retrieval is not None:
        for name, x in (
            ("Picture for a caption", found.retrieval.text_to_image),
            ("Caption for a picture", found.retrieval.image_to_text),
        ):
            cards.append((name, x.at[1], x.chance[1], f"first of {x.candidates:,}; chance {percent(x.chance[1])}"))
    if found.words is not None:
        hidden = found.words.all
        said = f"{percent(hidden.blind.share)} without the picture"
        cards.append(("Hidden word found again", hidden.seeing.share, hidden.blind.share, said))
    if found.pointing is not None and "attention" in found.pointing.ways:
        share = found.pointing.ways["attention"].share
        cards.append(
            ("Word attends to its region", share, found.pointing.chance, f"chance {percent(found.pointing.chance)}")
        )
    if "edited" in found.choices:
        pairs = found.choices["edited"].pairs
        cards.append(("True over edited caption", pairs.share, 0.5, f"{pairs.of:,} pairs; chance 50.0 %"))
    body = "".join(
        f'<div><span class="what">{escape(what)}</span><strong>{percent(value)}</strong>'
        f'<span class="bar"><i style="width:{100 * value:.1f}%"></i>{_chance(chance)}</span><span>{escape(said)}</span></div>'
        for what, value, chance, said in cards
    )
    return f'<section class="cards">{body}</section>' if cards else ""


def _chance(chance: float | None) -> str:
    return "" if chance is None else f'<b style="left:{100 * chance:.1f}%"></b>'


# ------------------------------------------------------------------------------------------------------------- sections


def _section(title: str, said: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{said}</p>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML already."""
    top = "".join(f"<th>{x}</th>" for x in head)
    body = "".join("<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _curves(metrics: Metrics | None) -> str:
    if metrics is None or not metrics.loss:
        return ""
    with style.settings("report curves"):
        drawn = style.svg(curves_figure(metrics), transparent=True)
    held = " Orange: on held-out pairs, with the same words and regions hidden every time." if metrics.valid else ""
    said = f"One objective a step; each panel is one loss over the steps of the run. Blue: training, faint as logged and bold smoothed.{held}"
    return _section("Losses", said, f'<div class="curves">{drawn}</div>')


def _retrieval(found: Evaluation) -> str:
    if found.retrieval is None:
        return ""
    rows = _retrieval_rows("this system", found.retrieval)
    names = {
        "ridge": "baseline: ridge regression to a bag of words",
        "nearest": "baseline: caption of the nearest training picture",
    }
    for name, x in found.baselines.items():
        rows += _retrieval_rows(names.get(name, name), x)
    one = found.retrieval.text_to_image
    rows += [
        ["chance", "text → image", *(percent(one.chance[k]) for k in CUTS), f"{one.chance_median:g}"],
        [
            "",
            "image → text",
            *(percent(found.retrieval.image_to_text.chance[k]) for k in CUTS),
            f"{found.retrieval.image_to_text.chance_median:g}",
        ],
    ]
    said = (
        f"The system scores every pair of {found.retrieval.image_to_text.candidates:,} captions and {one.candidates:,} pictures. R@K: how often a right one "
        "is among the first K. A tie with the right one counts against the system."
    )
    if found.retrieval.left_out:
        said += f" {found.retrieval.left_out:,} captions were too long and left out."
    return _section("Retrieval, both ways", said, _table(["", "", *(f"R@{k}" for k in CUTS), "median rank"], rows))


def _retrieval_rows(name: str, x: Retrieval) -> list[list[str]]:
    return [
        [escape(label), way, *(percent(recall.at[k]) for k in CUTS), f"{recall.median:g}"]
        for label, way, recall in ((name, "text → image", x.text_to_image), ("", "image → text", x.image_to_text))
    ]


def _words(found: Evaluation) -> str:
    if found.words is None:
        return ""
    kinds = {**found.words.kinds, "all": found.words.all} if len(found.words.kinds) > 1 else {"all": found.words.all}
    rows = [
        [
            f"{escape(kind)} <small>({x.seeing.of:,})</small>",
            percent(x.seeing.share),
            percent(x.blind.share),
            percent(x.commonest.share),
        ]
        for kind, x in kinds.items()
    ]
    said = (
        "One word of the caption is hidden, all its pieces at once; right when the likeliest word is the one that was there (or a synonym that the "
        "data name). The same is asked with all regions taken away: what is left is guessing from the other words."
    )
    return _section("Hidden words", said, _table(["word", "with the picture", "without", "always the commonest"], rows))


_WAYS = {
    "attention": "attention, the map chosen on validation samples",
    "attention, mean of all": "attention, mean of all heads and layers",
    "transport": "transport plan (the paper's own alignment)",
    "similarity": "word-region similarity behind the plan",
    "occlusion": "occlusion: the region without which the word is lost",
}


def _pointing(x: Pointing | None) -> str:
    if x is None:
        return ""
    rows = [
        [escape(_WAYS.get(name, name)), percent(share.share), f"{share.right:,} of {share.of:,}"]
        for name, share in x.ways.items()
    ]
    rows.append(["chance: any region", percent(x.chance), ""])
    if x.chance_objects is not None:
        rows.append(["chance: any object, background known", percent(x.chance_objects), ""])
    said = f"For each word that names a region: is the region that stands out for it the right one? Attention here is <i>{escape(str(x.look))}</i>"
    said += (
        f", which pointed {percent(x.validation.share)} right on the validation samples that chose it."
        if x.validation
        else "."
    )
    said += " Occlusion uses the hidden word itself, so it says which region the system needs, not what it reads there."
    return _section(
        "Which region does a word mean?", f"{said} {_about_transport(x)}", _table(["by", "right", ""], rows)
    )


def _about_transport(x: Pointing) -> str:
    """A plain sentence on the authors' plan, good or bad."""
    share = x.ways.get("transport")
    if share is None:
        return ""
    margin = 2 * (x.chance * (1 - x.chance) / share.of) ** 0.5
    if share.share <= x.chance + margin:
        return "<b>The transport plan points no better than chance in this run.</b>"
    if x.chance_objects is not None and share.share <= x.chance_objects + margin:
        return (
            "<b>The transport plan beats a random region here, but not one that only tells objects from background.</b>"
        )
    best = max((y.share for name, y in x.ways.items() if name.startswith("attention")), default=0.0)
    if share.share < best:
        return f"The transport plan beats chance in this run, though it points less often right than attention ({percent(share.share)} against {percent(best)})."
    return "The transport plan points at least as well as attention in this run."


def _choices(found: Evaluation) -> str:
    if not found.choices:
        return ""
    names = {"edited": "one word or colour edited", "swapped": "two colours exchanged"}
    rows = [
        [
            escape(names.get(name, name)),
            f"{percent(x.pairs.share)} <small>of {x.pairs.of:,}</small>",
            "50.0 %",
            percent(x.samples.share),
            percent(x.chance_samples),
        ]
        for name, x in found.choices.items()
    ]
    said = "A true caption and a false one of the same picture: which does the system find to fit better? Exchanged words need binding, not a bag of words."
    return _section(
        "True or false caption",
        said,
        _table(["false caption", "pairs right", "chance", "beats all of a picture", "chance"], rows),
    )


# -------------------------------------------------------------------------------------------------------------- gallery


def _gallery(system: System, found: Evaluation, source: Source | None) -> str:
    if source is None or not len(source):
        return ""
    samples = [source[i] for i in range(min(len(source), _SHOWN))]
    pixels = _pixels(source, samples)
    if pixels is None:
        return ""
    chosen = [source.words_to_test(i) for i in range(len(samples))] if isinstance(source, WorldSource) else None
    look = found.pointing.look if found.pointing is not None else Look()
    cases = pick_cases(find_cases(system, samples, chosen, look))
    wrong = sum(x.right is False for x in cases)
    known = [x for x in cases if x.right is not None]
    own = ""
    if cases and cases[0].own:
        own = f", a diamond marks the box that the {escape(cases[0].own)} map gives it, also where that points nowhere near"
    said = (
        f"The first {min(8, len(cases))} of {len(samples):,} held-out pictures, then the {max(0, len(cases) - 8)} worst of the others. A frame in a word's "
        f"colour is the box it attends to most{own}."
    )
    if known:
        said += (
            f" ✓ before a caption: attention points all its words right ({len(known) - wrong} of these {len(known)})."
        )
    cards = "".join(card(x, pixels(x.number)) for x in cases)
    return _section("What words look at", said, f'<div class="gallery">{cards}</div>')


def _pixels(source: Source, samples: Sequence[Sample]) -> Callable[[int], Array] | None:
    """The pixels of a sample by its number; None where there are none."""
    render: Callable[[int], Array] | None = getattr(source, "image", None)
    if isinstance(source, WorldSource) and source.config.level == 0:
        return None
    if render is not None:
        return render
    if not all(x.pictures and x.pictures[0].path for x in samples):
        return None
    return lambda i: _read(samples[i])


def _read(sample: Sample) -> Array:
    path = sample.pictures[0].path
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise BadInput(f"sample {sample.key}: its picture {path} cannot be read: {error}") from None


# ---------------------------------------------------------------------------------------------------------------- facts


def _facts(system: System, folder: Path, metrics: Metrics | None, found: Evaluation) -> str:
    recipe = _recipe(folder)
    size = sum(p.numel() for p in system.parameters())
    facts: dict[str, str] = {"system": system.card.name, "parameters": f"{size:,}"}
    if recipe.get("size"):
        facts["recipe"] = str(recipe["size"])
    if metrics is not None:
        facts["steps"] = f"{metrics.steps:,}"
        if metrics.seconds is not None:
            facts["training time"] = f"{metrics.seconds:,.0f} s"
        if metrics.pairs_per_second:
            facts["speed"] = f"{statistics.median(metrics.pairs_per_second):,.0f} pairs a second (median)"
    facts |= {
        "measured on": f"{found.samples:,} samples",
        "this machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": f"intarsia {_version('intarsia')}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    whole = json.dumps(recipe.get("recipe", {}), indent=2)
    more = f"<details><summary>The whole recipe</summary><pre>{escape(whole)}</pre></details>" if recipe else ""
    return (
        f'<section><h2>The run</h2><dl class="facts">{listed}</dl>{more}</section><footer>Written by intarsia.</footer>'
    )


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    return tree if isinstance(tree, dict) else {}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
