"""Hierarchical k-means: the tree, greedy descent, dead leaves, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.errors import BadInput
from intarsia.features.kmeans import WithWords, fit, read_codebook, write_codebook
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


def test_small_nodes_send_all_to_one_child() -> None:
    x = torch.cat([torch.zeros(40, 2) + torch.rand(40, 2), torch.full((2, 2), 50.0)])
    book = fit(x, 3, 3)
    words = book.assign(x)
    assert words[-1] == words[-2]
    assert not book.alive.all()
    assert book.words == 27
    assert fit(x, 3, 3).assign(x).tolist() == words.tolist()


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


def test_films_get_the_words_of_their_clips() -> None:
    world = FilmWorld(30)
    book = fit(torch.from_numpy(np.concatenate([world[i].film.features for i in range(30)])), 3, 2)
    film = WithWords(world, book)[4].film
    assert film.ids.tolist() == book.assign(torch.from_numpy(film.features)).tolist()
    told = [FilmWorld(30, language=language)[4].texts[0] for language in ("en", "zh")]
    assert told[0].startswith("now the ") and told[1].startswith("现在")
    assert FilmWorld(5, split="test")[0].texts != FilmWorld(5)[0].texts
