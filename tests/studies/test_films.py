"""The study of films: what blind captioners see, and how captions are judged."""

import numpy as np

from intarsia.studies.films import WAYS, Kept, _content, _written
from intarsia.worlds.film_features import FilmWorld

WORLD = FilmWorld(12)


def test_blind_captioners_see_how_many_clips_there_are_and_nothing_else() -> None:
    seen, blind = (Kept.told(WORLD, x, 5) for x in (False, True))
    assert len(seen) == len(blind) == sum(len(WORLD[i].texts) for i in range(5))
    for a, b in zip(seen.samples, blind.samples, strict=True):
        assert a.film is not None and b.film is not None
        assert a.texts == b.texts and len(a.texts) == 1
        assert a.film.features.shape == b.film.features.shape
        assert a.film.features.any() and not b.film.features.any()
    assert [blind for _, blind in WAYS.values()].count(True) == 1


def test_captions_are_judged_by_likeness_and_by_what_they_name() -> None:
    samples = Kept.told(WORLD, False, 12).samples
    said = [x.texts[0] for x in samples]
    whole = _written(samples, said)
    assert "Bleu_4 1.000, ROUGE_L 1.000" in whole
    assert "colour 1.000, shape 1.000, action 1.000" in whole
    always = _written(samples, ["now the red circle moves ."] * len(said))
    found = _content(samples)
    for kind, word in (("colour", "red"), ("shape", "circle"), ("action", "moves")):
        assert f"{kind} {np.mean([x == word for x in found[kind]]):.3f}" in always
    assert f"1 different of {len(said)}" in always
