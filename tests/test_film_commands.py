"""From mp4 and srt files to a trained system and back to pictures, by the commands of docs/video.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.cli import main
from intarsia.data.formats.films import FilmSource
from intarsia.data.video import picture_at, sentence, write_video
from intarsia.evaluate.films import Choices, Hits
from intarsia.features.kmeans import CODEBOOK, read_codebook
from intarsia.text import Vocab

pytest.importorskip("av")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("road")
    films = ["--side", "32", "--fps", "8", "--objects", "1", "2"]
    main(["data", "films", str(root / "films"), "--count", "4", *films])
    main(["data", "films", str(root / "films"), "--count", "1", "--split", "test", *films])
    main(["extract", "video", str(root / "films"), "--out", str(root / "clips"), "--extractor", "grid"])
    main(["data", "cluster", str(root / "clips"), "--out", str(root / "words.safetensors"), "--k", "2", "--depth", "2"])
    short = ["--schedule.steps", "3", "--batching.rows", "100", "--workers", "0"]
    order = ["--data", str(root / "clips"), "--centroids", str(root / "words.safetensors"), "--out", str(root / "run")]
    main(["pretrain", "videobert", *order, *short])
    return root


def test_the_run_keeps_its_codebook(run: Path) -> None:
    assert read_codebook(run / "run" / CODEBOOK).about == read_codebook(run / "words.safetensors").about != ""


def test_a_passage_is_drawn_as_strips(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run / "strip.png"
    order = ["videobert", "--weights", str(run / "run"), "--data", str(run / "clips"), "--out", str(out)]
    main(["show", "film", *order])
    source = FilmSource(run / "clips", "test")
    clips = sum(len(sentence(source[0], i).film.seconds) for i in range(len(source[0].texts)))  # type: ignore[union-attr]
    assert f"of {clips} visual words are those of the clips" in capsys.readouterr().out.replace("\n", " ")
    with Image.open(out) as drawn:
        assert min(drawn.size) > 200
        assert len(set(drawn.convert("L").resize((96, 96)).tobytes())) > 30
    with pytest.raises(SystemExit) as stopped:
        main(["show", "film", *order, "--number", "99"])
    assert stopped.value.code == 2
    assert "passage 99 of 2 of split test" in capsys.readouterr().err


def capture_of(capsys: pytest.CaptureFixture[str], order: list[str]) -> str:
    main(order)
    return capsys.readouterr().out.replace("\n", " ")


def test_a_gap_is_right_with_a_word_that_the_sentence_says() -> None:
    vocab = Vocab.learn(["red blue green pink grey black circle"])
    choices, hits = Choices.of(vocab, ["red", "blue", "green", "pink", "grey", "black"]), Hits()
    ranked = ["blue", "red", "green", "pink", "grey", "black"]
    for text in ("Red circle", "blue and red", "circle", "black circle"):
        hits.count(choices.said(vocab, text), ranked)
    assert (hits.asked, hits.first, hits.five) == (3, 1, 2)
    assert str(hits) == "3 sentences say one of them, first 0.333, among five 0.667"
    assert str(Hits()) == "no sentence says one of them"


def test_gaps_are_filled_above_clips(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "colours.txt").write_text("red\nblue\nultramarine blue\n")
    order = [
        "predict",
        "film",
        "videobert",
        "--weights",
        str(run / "run"),
        "--data",
        str(run / "clips"),
        "--count",
        "1",
    ]
    out = run / "told.jsonl"
    asked = ["--sentence", "the [MASK] .", "--choices", str(run / "colours.txt"), "--out", str(out)]
    main([*order, *asked])
    assert "2 words, 1 left out that are not one piece each" in capsys.readouterr().out.replace("\n", " ")
    lines = [json.loads(x) for x in out.read_text().splitlines()]
    assert len(lines) == len(FilmSource(run / "clips", "test")[0].texts)
    for line in lines:
        (gap,) = line["gaps"]
        assert {word for word, _ in gap} == {"red", "blue"}
        assert sum(share for _, share in gap) == pytest.approx(1, abs=1e-5)
    blind = capture_of(capsys, [*order, *asked, "--blind"])
    texts = [x["said"] for x in lines]
    asked_of = sum("red" in x.lower() or "blue" in x.lower() for x in texts)
    known = f"{asked_of} sentences say one of them" if asked_of else "no sentence says one of them"
    assert known in blind
    main([*order, "--sentence", "the [MASK] [MASK] .", "--whole"])
    assert "film-00000.mp4" in capsys.readouterr().out
    for wrong, said in (
        ([*asked[:2], "--choices", str(run / "none.txt")], "none.txt: cannot be read"),
        (["--sentence", "the [MASK] [MASK]", *asked[2:]], "2 gaps, 1 files of --choices"),
        (["--sentence", "the zyxw [MASK]"], "zyxw: not one piece"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*order, *wrong])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_what_reads_no_visual_words_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["--data", str(run / "clips"), "--out", str(tmp_path / "run"), "--schedule.steps", "2", "--workers", "0"]
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "cbt", *order, "--centroids", str(run / "words.safetensors")])
    assert stopped.value.code == 2
    assert "cbt reads no visual words" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_picture_at_a_moment(tmp_path: Path) -> None:
    grey = [np.full((32, 32, 3), x, np.uint8) for x in range(0, 250, 10)]
    write_video(tmp_path / "x.mp4", grey, 10)
    for second, tick in ((0.0, 0), (0.51, 5), (1.0, 10), (99.0, 24)):
        assert abs(float(picture_at(tmp_path / "x.mp4", second).mean()) - 10 * tick) < 4
