"""Hierarchical k-means: the tree, greedy descent, dead leaves, files."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.batch import Film, Sample
from intarsia.errors import BadInput
from intarsia.features.kmeans import WithWords, drawn, fit, nearest_clips, quantised, read_codebook, write_codebook
from intarsia.recipe import to_json
from intarsia.worlds.film_features import FilmWorld


def vectors(count: int, centres: int = 9, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        (rng.normal(size=(centres, 5))[rng.integers(centres, size=count)] * 8 + rng.normal(size=(count, 5))).astype(
            np.float32
        )
    )


def test_descent_is_the_loop_over_levels() -> None:
    x = vectors(500)
    book = fit(x, 3, 3)
    for row, word in zip(x.tolist(), book.assign(x).tolist(), strict=True):
        node = 0
        for centroids in book.levels:
            distances = [sum((a - b) ** 2 for a, b in zip(row, c, strict=True)) for c in centroids[node].tolist()]
            node = node * 3 + int(np.argmin(distances))
        assert node == word
    assert book.alive[book.assign(x)].all()


def test_every_node_is_at_rest_and_the_error_falls_with_depth() -> None:
    x = vectors(2000)
    errors = []
    for depth in (1, 2, 3):
        book = fit(x, 3, depth, rounds=60)
        words = book.assign(x)
        errors.append(float((x - book.leaves[words]).square().sum(1).mean()))
        for leaf in book.alive.nonzero()[:, 0].tolist():
            torch.testing.assert_close(x[words == leaf].mean(0), book.leaves[leaf], atol=1e-4, rtol=1e-4)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_one_level_finds_clusters_as_a_library_does() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = vectors(600, centres=4)
    ours = fit(x, 4, 1, rounds=100)
    error = float((x - ours.leaves[ours.assign(x)]).square().sum())
    assert error <= 1.02 * cluster.KMeans(4, n_init=10, random_state=0).fit(x.numpy()).inertia_


def test_a_tree_is_as_good_as_a_librarys_node_by_node() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = vectors(900, centres=40)
    ours = fit(x, 4, 2, rounds=60)
    error = float((x - ours.leaves[ours.assign(x)]).square().sum())
    first = cluster.KMeans(4, n_init=10, random_state=0).fit(x.numpy())
    nodes = [x.numpy()[first.labels_ == child] for child in range(4)]
    best = sum(cluster.KMeans(4, n_init=10, random_state=0).fit(node).inertia_ for node in nodes)
    assert error <= 1.1 * best
    some = fit(x[::3], 4, 2, rounds=60)  # a sample of a third serves all
    assert float((x - some.leaves[some.assign(x)]).square().sum()) <= 1.3 * best


class Clips:
    """Films of random vectors, made when asked for; of every film two passages in two languages that share clips."""

    provenance = None

    def __init__(self, films: int, clips: int = 40, width: int = 64) -> None:
        self.films, self.clips, self.width = films, clips, width

    def __len__(self) -> int:
        return 2 * self.films

    def __getitem__(self, index: int) -> Sample:
        film = np.random.default_rng(index // 2).normal(size=(self.clips, self.width)).astype(np.float32)
        kept = slice(0, self.clips - 4) if index % 2 else slice(0 if index % 4 else 2, self.clips)
        seconds = np.arange(self.clips, dtype=np.float32)[kept]
        shown = Film(f"f{index // 2}", film[kept], seconds, 1.0, np.zeros((0, 2), np.float32))
        return Sample(f"f{index // 2}-{index % 2}", (), film=shown)


def test_clips_are_drawn_each_once_and_errors_summed_film_by_film() -> None:
    source = Clips(5)
    whole, total = drawn(source, 1000)
    assert total == len(whole) == 5 * 40 and len(torch.unique(whole, dim=0)) == total
    some, again = drawn(source, 60, seed=1), drawn(source, 60, seed=1)
    assert some[1] == 200 and torch.equal(some[0], again[0]) and len(torch.unique(some[0], dim=0)) == 60
    assert all(any(torch.equal(x, y) for y in whole) for x in some[0])
    taken = torch.stack([(drawn(source, 60, seed)[0][:, None] == whole).all(2).any(0) for seed in range(100)])
    assert abs(float(taken.float().mean(0).std()) - (0.3 * 0.7 / 100) ** 0.5) < 0.015  # each as likely as any other
    book = fit(whole, 3, 2)
    error, variance = quantised(source, book)
    assert error == pytest.approx(float((whole - book.leaves[book.assign(whole)]).square().sum(1).mean()), rel=1e-5)
    assert variance == pytest.approx(float(whole.var(0, correction=0).sum()), rel=1e-5)
    with pytest.raises(BadInput, match="no clips to cluster"):
        drawn(Clips(0), 10)


def test_drawing_holds_what_is_drawn_and_one_film() -> None:
    peaks = []
    for films in (40, 400):
        tracemalloc.start()
        drawn(Clips(films), 500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 400 * 40 * 16  # counts and numbers alone, no features


def test_the_nearest_clip_of_each_centroid() -> None:
    source = Clips(6, clips=9, width=5)
    centroids = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for centroid, (sample, clip) in zip(centroids, nearest_clips(source, centroids), strict=True):
        every = [torch.from_numpy(source[i].film.features) for i in range(len(source))]
        least = min(float((x - centroid).norm(dim=1).min()) for x in every)
        assert float((every[sample][clip] - centroid).norm()) == pytest.approx(least, rel=1e-6)


def test_small_nodes_send_all_to_one_child() -> None:
    x = torch.cat([torch.zeros(40, 2) + torch.rand(40, 2), torch.full((2, 2), 50.0)])
    book = fit(x, 3, 3)
    words = book.assign(x)
    assert words[-1] == words[-2]
    assert not book.alive.all()
    assert book.words == 27
    assert fit(x, 3, 3).assign(x).tolist() == words.tolist()
    assert book.assign(x[:0]).tolist() == []


@pytest.mark.parametrize(("width", "k"), [(64, 12), (1024, 12), (1024, 13), (1024, 17)])
def test_small_nodes_send_all_to_the_first_child_whatever_the_rounding(width: int, k: int) -> None:
    for seed in range(12):
        x = torch.randn(2 * k, width, generator=torch.Generator().manual_seed(seed))
        book = fit(x, k, 3)
        below = torch.bincount(book.assign(x) // k**2, minlength=k)
        assert set((book.assign(x)[below[book.assign(x) // k**2] < k] % k**2).tolist()) <= {0}
        assert all(int(book.assign(x[i : i + 1])) == int(word) for i, word in enumerate(book.assign(x)))


def test_files_and_what_cannot_be_used(tmp_path: Path) -> None:
    book = fit(vectors(100), 2, 2, about="frames")
    write_codebook(tmp_path / "book.safetensors", book)
    again = read_codebook(tmp_path / "book.safetensors")
    assert again.about == "frames"
    assert torch.equal(again.assign(vectors(50, seed=1)), book.assign(vectors(50, seed=1)))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"x\.safetensors: no codebook can be read"):
        read_codebook(tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="2 vectors, k 3"):
        fit(vectors(2), 3, 2)
    broken = vectors(20)
    broken[7, 1] = torch.nan
    with pytest.raises(BadInput, match="vector 7 is not finite"):
        fit(broken, 3, 1)
    with pytest.raises(BadInput, match="features of width 64, the codebook 5"):
        WithWords(FilmWorld(2), book)


def test_words_are_for_clips_described_as_those_of_the_codebook() -> None:
    world = FilmWorld(10)
    x = torch.from_numpy(np.concatenate([world[i].film.features for i in range(10)]))
    assert len(WithWords(world, fit(x, 2, 2, about=to_json(world.provenance)))) == 10
    with pytest.raises(BadInput, match=r'described otherwise: .*"noise": "0.3".*; these: .*"noise": "0.5"'):
        WithWords(FilmWorld(10, noise=0.5), fit(x, 2, 2, about=to_json(world.provenance)))


def test_films_get_the_words_of_their_clips() -> None:
    world = FilmWorld(30)
    book = fit(torch.from_numpy(np.concatenate([world[i].film.features for i in range(30)])), 3, 2)
    film = WithWords(world, book)[4].film
    assert film.ids.tolist() == book.assign(torch.from_numpy(film.features)).tolist()
    told = [FilmWorld(30, language=language)[4].texts[0] for language in ("en", "zh")]
    assert told[0].startswith("now the ") and told[1].startswith("现在")
    assert FilmWorld(5, split="test")[0].texts != FilmWorld(5)[0].texts
