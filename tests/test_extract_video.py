import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.data.check import check, inspect
from intarsia.data.formats.films import FilmIndex, FilmSource
from intarsia.data.opening import open_source
from intarsia.data.subtitles import Sentence, srt
from intarsia.data.video import write_video
from intarsia.errors import BadInput
from intarsia.extract import SKIPPED
from intarsia.extract_video import extract_video
from intarsia.features.clips import open_clip_extractor

pytest.importorskip("av")
ROOT = Path(__file__).parents[1]
SAID = [Sentence("One is here.", 0.2, 1.0), Sentence("Two comes.", 1.2, 2.4), Sentence("Three is late.", 9.0, 10.0)]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Five films of 3.2 s, two of them with subtitles."""
    root = tmp_path_factory.mktemp("films")
    for number in range(5):
        name = f"test/{number}.mp4" if number == 4 else f"{number}.mp4"
        rng = np.random.default_rng(number)
        pictures = [np.full((48, 64, 3), x, np.uint8) for x in rng.integers(0, 256, 64)]
        write_video(root / name, pictures, 20)
    (root / "0.srt").write_text(srt(SAID))
    (root / "1.vtt").write_text("WEBVTT\n\n00:00.500 --> 00:02.000\nA film.\n")
    (root / "1.zh.srt").write_text(srt([Sentence("一部电影。", 0.5, 2.0)]), encoding="utf-8")
    return root


def grid():
    return open_clip_extractor("grid", frames=10, side=32, device="cpu")


def run(source, out, **options):
    return extract_video(source, out, grid(), **{"show": False, "films_per_shard": 2} | options)


def contents(out):
    return {x.name: x.read_bytes() for x in sorted(Path(out).iterdir())}


def test_films_become_passages(films, tmp_path):
    report = run(films, tmp_path / "out")
    assert (report.films, report.resumed, report.clips, report.frames) == (5, 0, 30, 320)
    assert (report.sentences, report.without_speech, report.outside) == ({"en": 3, "zh": 1}, 3, 1)
    assert report.left_over == pytest.approx(5 * 0.2)
    source = open_source(tmp_path / "out")
    assert isinstance(source, FilmSource)
    assert source.provenance == grid().provenance
    assert [x.films for x in source.films.shards] == [2, 2, 1]
    samples = [source[i] for i in range(len(source))]
    keys = ["0.mp4#0.20", "1.mp4#0.50-en", "1.mp4#0.50-zh", "2.mp4#0.00", "3.mp4#0.00", "test/4.mp4#0.00"]
    assert [x.key for x in samples] == keys
    assert samples[0].texts == ("One is here.", "Two comes.")
    np.testing.assert_allclose(samples[0].film.spans, [[0.2, 1.0], [1.2, 2.4]], atol=1e-6)
    np.testing.assert_allclose(samples[0].film.seconds, [0, 0.5, 1, 1.5, 2])
    assert samples[0].film.length == 0.5
    assert samples[2].texts == ("一部电影。",) and samples[2].language == "zh"
    assert Path(samples[5].film.path).resolve() == (films / "test/4.mp4").resolve()
    assert samples[3].texts == () and samples[3].film.spans.shape == (0, 2) and len(samples[3].film.features) == 6
    assert [x.key for x in open_samples(tmp_path / "out", "test")] == ["test/4.mp4#0.00"]
    assert source.outside == 1 + 3  # the last clip of 0, and of 1 the first and the last two
    shorter = FilmSource(tmp_path / "out", most=1.0, silent=4)
    assert [len(x.film.features) for x in (shorter[i] for i in range(len(shorter)))] == [2, 2, 2, 2, 4, 2, 4, 2, 4, 2]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0].film.features, samples[0].film.features)


def open_samples(path, split):
    source = open_source(path, split)
    return [source[i] for i in range(len(source))]


def test_a_file_of_captions_says_what_is_said(films, tmp_path):
    steps = [
        {"id": 0, "segment": [0.5, 2], "sentence": "cut it"},
        {"id": 1, "segment": [9, 10], "sentence": "too late"},
    ]
    told = tmp_path / "youcook.json"
    told.write_text(json.dumps({"database": {"0": {"annotations": steps}, "elsewhere": {"annotations": []}}}))
    report = run(films, tmp_path / "out", captions=told)
    assert (report.sentences, report.outside) == ({"en": 2, "zh": 1}, 1)
    source = open_source(tmp_path / "out")
    assert [source[i].texts for i in range(2)] == [("cut it",), ("A film.",)]


def test_the_batch_changes_nothing(films, tmp_path):
    run(films, tmp_path / "one", batch=1)
    run(films, tmp_path / "many", batch=64)
    one, many = (FilmSource(tmp_path / x) for x in ("one", "many"))
    for i in range(len(one)):
        np.testing.assert_allclose(one[i].film.features, many[i].film.features, atol=2e-3, rtol=2e-3)


SLOW = """
import sys, time
from intarsia.extract_video import extract_video
from intarsia.features.clips import open_clip_extractor
inner = open_clip_extractor("grid", frames=10, side=32, device="cpu")
class Slow:
    name, provenance, sampling, shrink = inner.name, inner.provenance, inner.sampling, inner.shrink
    def __call__(self, clips):
        time.sleep(0.1)
        return inner(clips)
extract_video(sys.argv[1], sys.argv[2], Slow(), films_per_shard=2, show=False)
"""


def test_killed_and_run_again_it_writes_the_same_shards(films, tmp_path):
    films_done = 3  # a shard of two, and one film beside it
    run(films, tmp_path / "whole")
    out = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(films), str(out)], env=environment)
    try:
        while not (out / f"part-{films_done - 1:07d}.json").exists():
            assert process.poll() is None, "ended before it had stored a film"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not FilmIndex.read(out).finished
    with pytest.raises(BadInput, match="not finished"):
        FilmSource(out)
    report = run(films, out)
    assert films_done <= report.resumed < 5
    assert report.clips == 6 * (5 - report.resumed)  # what was stored is not decoded again
    assert contents(out) == contents(tmp_path / "whole")
    assert run(films, out).resumed == 5
    assert contents(out) == contents(tmp_path / "whole")


def test_bad_films_are_named_skipped_and_counted(films, tmp_path):
    root = tmp_path / "films"
    shutil.copytree(films, root)
    good = (root / "2.mp4").read_bytes()
    (root / "2.mp4").write_bytes(good[:300])
    (root / "1.vtt").write_text("WEBVTT\n\n00:09.500 --> 00:02.000\nA film.\n")
    with pytest.raises(BadInput, match=r"1\.vtt: line 3: a cue from 9\.5 s to 2 s"):
        run(root, tmp_path / "out")
    report = run(root, tmp_path / "out", on_error="skip")
    assert (report.films, report.resumed) == (3, 1)
    assert [x.split(": ")[0].rsplit("/", 1)[1] for x in report.skipped] == ["1.vtt", "2.mp4"]
    assert (tmp_path / "out" / SKIPPED).read_text().splitlines() == list(report.skipped)
    (root / "2.mp4").write_bytes(good)
    (root / "1.vtt").unlink()
    again = run(root, tmp_path / "out", on_error="skip")
    assert (again.films, again.resumed, again.skipped) == (5, 3, ())
    assert not (tmp_path / "out" / SKIPPED).exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match=r"none: no video in it"):
        run(tmp_path / "none", tmp_path / "x")


def test_two_subtitle_files_of_one_language_are_an_error(films, tmp_path):
    root = tmp_path / "films"
    root.mkdir()
    shutil.copy(films / "0.mp4", root)
    for name in ("0.srt", "0.en.srt"):
        shutil.copy(films / "0.srt", root / name)
    with pytest.raises(BadInput, match=r"0\.en\.srt: 0\.mp4 has subtitles in en already"):
        run(root, tmp_path / "out")
    assert run(root, tmp_path / "out", language="de").sentences == {"de": 2, "en": 2}


def test_other_settings_do_not_mix(films, tmp_path):
    run(films, tmp_path / "out")
    with pytest.raises(BadInput, match="begun with settings"):
        extract_video(films, tmp_path / "out", open_clip_extractor("grid", frames=20, side=32), show=False)


def test_inspect_and_check(films, tmp_path):
    out = tmp_path / "out"
    run(films, out)
    report = inspect(str(out))
    assert (report.samples, report.films, report.splits) == (6, 5, {"train": 4, "test": 1})
    lines = "\n".join(report.lines())
    assert (
        "videos             5" in lines
        and "clips in none      4" in lines
        and "0.mp4#0.20 [en] 'One is here.'" in lines
    )
    counts = check(str(out))
    assert (counts.samples, counts.usable, counts.problems) == (6, 6, ())
    shard = out / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadInput, match=r"shard-00000\.safetensors: its bytes have changed"):
        check(str(out))
    assert len(check(str(out), "skip").problems) == 1
    shard.write_bytes(data[:-4])
    with pytest.raises(BadInput, match=r"shard-00000\.safetensors: .* bytes, films\.json says"):
        open_source(out)


def test_a_damaged_index_is_named(films, tmp_path):
    run(films, tmp_path / "out")
    tree = json.loads((tmp_path / "out/films.json").read_text())
    (tmp_path / "out/films.json").write_text(json.dumps(tree | {"version": 99}))
    with pytest.raises(BadInput, match=r"films\.json: not an index of film shards"):
        open_source(tmp_path / "out")


def test_the_command(films, tmp_path, capsys):
    options = ["cells", "1", "side", "32", "frames", "10"]
    main(["extract", "video", str(films), "--out", str(tmp_path / "a"), "--extractor", "grid", "--options", *options])
    assert "5 films (0 from before), 30 clips of 320 frames" in capsys.readouterr().out
    assert open_source(tmp_path / "a")[0].film.features.shape == (5, 512)
    main(["data", "films", str(tmp_path / "made"), "--count", "1", "--side", "32"])
    assert (tmp_path / "made/train/film-00000.zh.srt").exists()
    with pytest.raises(SystemExit) as ended:
        main(["extract", "video", str(tmp_path / "nowhere"), "--out", str(tmp_path / "b"), "--extractor", "grid"])
    assert ended.value.code == 2
    assert not (tmp_path / "b").exists()
