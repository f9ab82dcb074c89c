"""Hierarchical k-means: vectors to the words of VideoBERT. Source: VideoBERT, sec. 3.3 and 4.2, "hierarchical k-means, d = 4, k = 12".

A vector goes down a tree: at each node to the nearest of its k centroids. Its word is the path, read as a number to the base k. That is not the nearest of all
leaves. A node with fewer than k vectors sends all of them to its first child; leaves that no vector of the fit reached are dead.

The tree is grown on a sample of bounded size (`drawn`); all clips then go down it film by film, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from intarsia.batch import Array
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.recipe import to_json

CODEBOOK = "centroids.safetensors"
"""Of a run folder: the codebook its films' words are of."""
SEEDED_ON = 20_000
"""Vectors of a node that its first centroids are drawn from."""


@dataclass(frozen=True)
class Codebook:
    """The centroids of a tree."""

    levels: tuple[Tensor, ...]
    """Of each level (k ** l, k, F) float32: the children of every node."""
    alive: Tensor
    """(k ** depth) bool, leaves that vectors of the fit reached."""
    about: str = ""
    """What the vectors were: the extractor, its settings."""

    @property
    def words(self) -> int:
        """Leaves, dead ones among them."""
        return len(self.alive)

    @property
    def leaves(self) -> Tensor:
        """(words, F) their centroids."""
        return self.levels[-1].flatten(0, 1)

    def assign(self, vectors: Tensor) -> Tensor:
        """(N, F) float to (N) int64 words."""
        node = torch.zeros(len(vectors), dtype=torch.int64)
        for centroids in self.levels:
            node = node * centroids.shape[1] + _nearest_by_node(vectors, node, centroids)
        return node


def fit(vectors: Tensor, k: int = 12, depth: int = 4, seed: int = 0, rounds: int = 15, about: str = "") -> Codebook:
    """Grows the tree, level by level.

    Args:
        vectors: (N, F) float32.
        k: children of a node.
        depth: levels.
        seed: of the first centroids.
        rounds: of Lloyd's algorithm a node, fewer if nothing moves.
        about: kept with it.

    Raises:
        BadInput: fewer than k vectors, or one that is not finite (names its row).
    """
    if len(vectors) < k or k < 2 or depth < 1:
        raise BadInput(f"k-means: {len(vectors)} vectors, k {k}, depth {depth}: at least k vectors, k 2 and depth 1")
    for first, part in enumerate(torch.split(vectors, SEEDED_ON)):
        if not bool(part.isfinite().all()):
            row = first * SEEDED_ON + int((~part.isfinite().all(1)).nonzero()[0])
            raise BadInput(f"k-means: vector {row} is not finite")
    vectors = vectors.float()
    node = torch.zeros(len(vectors), dtype=torch.int64)
    levels: list[Tensor] = []
    for level in range(depth):
        centroids = torch.zeros(k**level, k, vectors.shape[1])
        for number, rows in _members(node):
            rng = np.random.default_rng([seed, level, number])
            centroids[number] = _lloyd(_some(vectors, rows), k, rng, rounds)
        levels.append(centroids)
        node = node * k + _nearest_by_node(vectors, node, centroids)
    alive = torch.zeros(k**depth, dtype=torch.bool)
    alive[node] = True
    return Codebook(tuple(levels), alive, about)


def _members(node: Tensor) -> list[tuple[int, Tensor]]:
    """Nodes that have vectors, and the rows of each."""
    if not len(node):
        return []
    order = torch.argsort(node, stable=True)
    numbers, starts = np.unique(node[order].numpy(), return_index=True)
    return list(zip(numbers.tolist(), torch.tensor_split(order, starts[1:].tolist()), strict=True))


def _some(vectors: Tensor, rows: Tensor) -> Tensor:
    """Some rows; without a copy where they are all, in their order, as at the root."""
    return vectors if len(rows) == len(vectors) else vectors[rows]


def _nearest_by_node(vectors: Tensor, node: Tensor, centroids: Tensor) -> Tensor:
    """(N) which child of its node each vector is nearest to, the first of equals."""
    found = torch.empty(len(vectors), dtype=torch.int64)
    for number, rows in _members(node):
        found[rows] = _nearest(_some(vectors, rows), centroids[number])
    return found


def _nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    if torch.equal(centroids, centroids[:1].expand_as(centroids)):  # equal by definition, not always after a product
        return torch.zeros(len(vectors), dtype=torch.int64)
    return (centroids.square().sum(1) - 2 * vectors.float() @ centroids.T).argmin(1)


def _lloyd(vectors: Tensor, k: int, rng: np.random.Generator, rounds: int) -> Tensor:
    """(k, F) centroids of a node; all the mean where it has fewer than k vectors."""
    if len(vectors) < k:
        return vectors.mean(0).expand(k, -1).clone()
    centroids = _seeds(vectors, k, rng)
    chosen = _nearest(vectors, centroids)
    for _ in range(rounds):
        counts = torch.bincount(chosen, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, chosen, vectors)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        before, chosen = chosen, _nearest(vectors, centroids)
        if torch.equal(before, chosen):
            break
    return centroids


def _seeds(vectors: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """k-means++: each next one with a chance that grows with its squared distance from those chosen."""
    if len(vectors) > SEEDED_ON:
        vectors = vectors[torch.from_numpy(rng.choice(len(vectors), SEEDED_ON, replace=False))]
    chosen = [int(rng.integers(len(vectors)))]
    far = (vectors - vectors[chosen[0]]).square().sum(1)
    for _ in range(k - 1):
        total = float(far.sum())
        share = far.double().numpy() / total if total > 0 else np.full(len(far), 1 / len(far))
        chosen.append(int(rng.choice(len(vectors), p=share / share.sum())))
        far = torch.minimum(far, (vectors - vectors[chosen[-1]]).square().sum(1))
    return vectors[chosen].clone()


def _films(source: Any) -> Iterator[Array]:
    """The features (V, F) of each sample that has a film, less clips that the sample before had, as where a film is told in two languages."""
    name, seen = "", set[float]()
    for i in range(len(source)):
        film = source[i].film
        if film is None:
            continue
        name, seen = film.name, seen if film.name == name else set()
        fresh = [n for n, start in enumerate(film.seconds.tolist()) if start not in seen]
        seen.update(film.seconds.tolist())
        if fresh:
            yield film.features if len(fresh) == len(film.features) else film.features[fresh]


def drawn(source: Any, most: int, seed: int = 0) -> tuple[Tensor, int]:
    """Clips of a source's films to grow a tree on: all, or `most` of them, each as likely as any other.

    Reads the source twice, first to count; holds the clips drawn and those of one film.

    Returns:
        (N, F) float32, N at most `most`, in the source's order; and how many clips there are.

    Raises:
        BadInput: there are none.
    """
    shapes = np.array([x.shape for x in _films(source)], np.int64).reshape(-1, 2)
    total = int(shapes[:, 0].sum())
    if not total:
        raise BadInput("no clips to cluster")
    numbers = np.arange(total)
    if total > most:
        numbers = np.sort(np.random.default_rng(seed).choice(total, most, replace=False, shuffle=False))
    found = np.empty((len(numbers), int(shapes[:, 1].max())), np.float32)
    begin = at = 0
    for features in _films(source):
        end = begin + len(features)
        after = int(np.searchsorted(numbers, end))
        found[at:after] = features[numbers[at:after] - begin]
        begin, at = end, after
    return torch.from_numpy(found), total


def quantised(source: Any, book: Codebook) -> tuple[float, float]:
    """Mean squared distance of a source's clips to their centroids, and to their mean; film by film."""
    count, error = 0, 0.0
    first = second = np.zeros(book.levels[0].shape[2])
    for features in _films(source):
        vectors = torch.from_numpy(np.asarray(features, np.float32))
        error += float((vectors - book.leaves[book.assign(vectors)]).double().square().sum())
        wide = vectors.double().numpy()
        count, first, second = count + len(wide), first + wide.sum(0), second + (wide**2).sum(0)
    return error / count, float((second / count - (first / count) ** 2).sum())


def nearest_clips(source: Any, centroids: Tensor) -> list[tuple[int, int]]:
    """For each centroid (M, F) the clip of a source nearest to it: sample and clip; film by film."""
    best = torch.full((len(centroids),), torch.inf)
    found = [(0, 0)] * len(centroids)
    for number in range(len(source)):
        film = source[number].film
        if film is None or not len(film.features):
            continue
        vectors = torch.from_numpy(np.asarray(film.features, np.float32))
        far, clip = torch.cdist(centroids, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        for i in (far < best).nonzero()[:, 0].tolist():
            best[i], found[i] = far[i], (number, int(clip[i]))
    return found


def write_codebook(path: Path, book: Codebook) -> None:
    """Writes it as .safetensors, whole or not at all."""
    tensors: dict[str, Any] = {f"level{i}": x.contiguous() for i, x in enumerate(book.levels)}
    with write_whole(path) as part:
        save_file(tensors | {"alive": book.alive}, part, {"about": book.about, "kind": "codebook"})


def read_codebook(path: Path) -> Codebook:
    """Reads it.

    Raises:
        BadInput: no such file, or not a codebook.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            names: Sequence[str] = sorted(x for x in file.keys() if x.startswith("level"))  # noqa: SIM118
            if about.get("kind") != "codebook" or not names:
                raise BadInput(f"{path}: not a codebook; `intarsia data cluster` writes one")
            return Codebook(tuple(file.get_tensor(x) for x in names), file.get_tensor("alive"), about.get("about", ""))
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: no codebook can be read: {error}") from None


def _line(text: str) -> str:
    return " ".join(text.split())


class WithWords:
    """A source whose films have visual words.

    Args:
        source: films with features.
        book: their codebook.

    Raises:
        BadInput: the features are of another width than the codebook's, or made otherwise.
    """

    def __init__(self, source: Any, book: Codebook) -> None:
        self.source, self.book, self.provenance = source, book, source.provenance
        if self.provenance is None:
            return
        width, here = book.levels[0].shape[2], to_json(self.provenance)
        if self.provenance.width != width:
            raise BadInput(f"clips have features of width {self.provenance.width}, the codebook {width}")
        if book.about and book.about != here:
            raise BadInput(f"the codebook is of clips described otherwise: {_line(book.about)}; these: {_line(here)}")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        sample = self.source[index]
        if sample.film is None:
            return sample
        ids = self.book.assign(torch.from_numpy(np.asarray(sample.film.features, np.float32))).numpy()
        return replace(sample, film=replace(sample.film, ids=ids))
