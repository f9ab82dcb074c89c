"""The corpus that VinVL's Oscar+ was pre-trained on: a .yaml, a TSV of texts, and folders of features and labels by data set.

The .yaml has `corpus` (names joined by "_"), `corpus_file`, and `image_label_path` and `image_feature_path`, folders by name, relative to itself. Features lie in
FOLDER/features.tsv or FOLDER/CHUNK/features.tsv. A row of texts: `NAME_[CHUNK_]IMAGE`, `NAME[_qa_IMAGE]_LABEL`, the text. A caption's tags are those of
`predictions_gt.tsv`, annotated ones (`gt_objects`) where there are any; a question's answers are those of its label in `QA_fileB.tsv`. "cc" is "googlecc".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from intarsia.batch import Picture
from intarsia.data.formats.line_index import IndexedLines
from intarsia.data.formats.oscar_tsv import OscarTsv, read_json_cell, read_yaml
from intarsia.data.formats.store import RegionStore
from intarsia.errors import BadInput

FEATURES, LABELS, ANSWERS = "features.tsv", "predictions_gt.tsv", "QA_fileB.tsv"
ALIAS = {"cc": "googlecc"}


class OscarCorpus(RegionStore):
    """Such a corpus as a store with captions and questions; a picture is called `NAME_[CHUNK_]IMAGE`.

    Args:
        path: the .yaml.
        width: F, numbers a region without the geometry.

    Raises:
        BadInput: a file or folder it names is not there, or a row cannot be used.
    """

    kind = "Oscar+ pre-training corpus"

    def __init__(self, path: str | Path, width: int = 2048) -> None:
        self.path = Path(path)
        tree = read_yaml(self.path)
        try:
            names = str(tree["corpus"]).split("_")
            folders = {
                x: [self.path.parent / tree[key][x] for key in ("image_feature_path", "image_label_path")]
                for x in names
            }
            self.rows = IndexedLines(self.path.parent / tree["corpus_file"])
        except (KeyError, TypeError) as error:
            raise BadInput(f"{path}: not the .yaml of a pre-training corpus: {error!r}") from None
        self._parts: list[OscarTsv] = []
        self._places: list[tuple[int, int]] = []
        self._answers: dict[str, tuple[IndexedLines, dict[str, int]]] = {}
        found: list[str] = []
        for name, (features, labels) in folders.items():
            found += self._open(name, features, labels, width)
        self.names = found
        self._said = self._read_rows()

    def _open(self, name: str, features: Path, labels: Path, width: int) -> list[str]:
        names: list[str] = []
        files = [features / FEATURES] if (features / FEATURES).is_file() else sorted(features.glob(f"*/{FEATURES}"))
        if not files:
            raise BadInput(f"{self.path}: {name}: {features} has no {FEATURES}, nor do its folders")
        beside = labels / LABELS
        for file in files:
            part = OscarTsv(file, width, labels=beside if beside.is_file() else None)
            head = name if file.parent == features else f"{name}_{file.parent.name}"
            self._places += [(len(self._parts), i) for i in range(len(part))]
            names += [f"{head}_{x}" for x in part.names]
            self._parts.append(part)
        if (labels / ANSWERS).is_file():
            lines = IndexedLines(labels / ANSWERS)
            self._answers[name] = lines, {lines.first_column(i): i for i in range(len(lines))}
        return names

    def _read_rows(self) -> list[list[int]]:
        """The rows of texts of each picture; those of other data sets, or of pictures that are not there, are counted."""
        places = {name: i for i, name in enumerate(self.names)}
        found: list[list[int]] = [[] for _ in self.names]
        for number in range(len(self.rows)):
            head, _, rest = self.rows.first_column(number).partition("_")
            place = places.get(f"{ALIAS.get(head, head)}_{rest}")
            if place is None:
                self.leave(("rows of texts without features",))
            else:
                found[place].append(number)
        return found

    def picture(self, number: int) -> Picture:
        """A picture of one of the feature files."""
        part, place = self._places[number]
        found = self._parts[part].picture(place)
        return replace(found, name=self.names[number])

    def tags(self, number: int) -> tuple[str, ...]:
        """The classes of a picture's labels."""
        part, place = self._places[number]
        return self._parts[part].tags(place)

    def said(self, number: int) -> list[dict[str, Any]]:
        """The captions of a picture as one line, each of its questions as another."""
        captions, asked = [], []
        for row in self._said[number]:
            where, cells = f"{self.rows.path}, line {row + 1}", self.rows[row].split(b"\t")
            if len(cells) < 3:
                raise BadInput(f"{where}: {len(cells)} columns, expected 3")
            try:
                label, text = cells[1].decode().split("_"), cells[2].decode().strip()
            except UnicodeDecodeError:
                raise BadInput(f"{where}: not UTF-8") from None
            if "qa" in label:
                asked.append({"question": text, "answers": [[x, 1.0] for x in self._answered(label, where)]})
            else:
                captions.append(text)
        return [*([{"captions": captions}] if captions else []), *asked]

    def _answered(self, label: list[str], where: str) -> list[str]:
        name = ALIAS.get(label[0], label[0])
        lines, places = self._answers.get(name, (None, {}))
        if lines is None or label[-1] not in places:
            raise BadInput(f"{where}: question {label[-1]} is not in {ANSWERS} of {name}")
        content = read_json_cell(lines, places[label[-1]])
        if not isinstance(content, dict) or not isinstance(content.get("labels"), list):
            raise BadInput(f"{lines.path}, line {places[label[-1]] + 1}: has no list of labels")
        return [str(x) for x in content["labels"]]
